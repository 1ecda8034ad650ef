//! `dstack policy test`.

use std::path::Path;

use dstack_api::{UserFacing as _, policy_webhook::PolicyBootInfo};
use dstack_authorization::{AllowList, Subject, parse_boot_info};
use serde::{Deserialize, Serialize};

use super::args::PolicyTestArgs;
use crate::{
    failure::{EXIT_NEGATIVE, Failure, Outcome},
    output::{Output, Tone, printable},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    subject: CaseSubject,
    /// `allow`, or the code of a denial.
    expect: String,
    boot: PolicyBootInfo,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CaseSubject {
    #[default]
    App,
    Kms,
}

#[derive(Debug, Serialize)]
struct Outcomes {
    apps: usize,
    os_images: usize,
    cases: Vec<CaseOutcome>,
}

#[derive(Debug, Serialize)]
struct CaseOutcome {
    name: String,
    expected: String,
    got: String,
    is_as_expected: bool,
}

/// Checks the list, then the cases.
pub(super) fn test(args: &PolicyTestArgs, output: Output) -> Outcome<u8> {
    let list = super::load(&args.list)?;
    let mut cases = Vec::new();
    for path in &args.cases {
        for case in read(path)? {
            cases.push(run(&list, &case, path)?);
        }
    }
    let failed = cases.iter().filter(|case| !case.is_as_expected).count();
    let outcomes = Outcomes { apps: list.apps().len(), os_images: list.os_images().len(), cases };
    output.result(&outcomes, |palette| {
        let mut lines = vec![format!("{}: {} apps, {} OS images", args.list.display(), outcomes.apps, outcomes.os_images)];
        for case in &outcomes.cases {
            let name = printable(&case.name, 100);
            lines.push(match case.is_as_expected {
                true => format!("  {}  {name}", palette.paint(Tone::Good, "ok  ")),
                false => {
                    format!("  {}  {name}: expected {}, got {}", palette.paint(Tone::Bad, "FAIL"), printable(&case.expected, 60), case.got)
                }
            });
        }
        lines.join("\n")
    })?;
    Ok(if failed == 0 { 0 } else { EXIT_NEGATIVE })
}

fn read(path: &Path) -> Outcome<Vec<Case>> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("reading", path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        let cause = format!("{}:{}: {error}", path.display(), error.line());
        Failure::usage("policy/bad-cases", cause, "`dstack policy test --help` shows the form")
    })
}

fn run(list: &AllowList, case: &Case, path: &Path) -> Outcome<CaseOutcome> {
    let facts = parse_boot_info(&case.boot).map_err(|error| {
        let cause = format!("{}: case {:?}: {error}", path.display(), printable(&case.name, 100));
        Failure::usage("policy/bad-cases", cause, "give digests as hex of their full length")
    })?;
    let subject = match case.subject {
        CaseSubject::App => Subject::App,
        CaseSubject::Kms => Subject::Kms,
    };
    let got = list.decide(subject, &facts).map_or_else(|denial| denial.code().to_owned(), |()| "allow".to_owned());
    Ok(CaseOutcome { name: case.name.clone(), expected: case.expect.clone(), is_as_expected: got == case.expect, got })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use std::fs;

    use super::*;

    const LIST: &str = "version = 1\n[[os_images]]\nhash = \"0101010101010101010101010101010101010101010101010101010101010101\"\n";

    fn outcome(cases: &str) -> Outcome<u8> {
        let directory = tempfile::tempdir().unwrap();
        let (list, file) = (directory.path().join("allow.toml"), directory.path().join("cases.json"));
        fs::write(&list, LIST).unwrap();
        fs::write(&file, cases).unwrap();
        test(&PolicyTestArgs { list, cases: vec![file] }, Output::detect(true))
    }

    fn case(expect: &str, tcb: &str) -> String {
        format!(
            r#"[{{"name":"x","expect":"{expect}","boot":{{"teeVariant":"dstack-tdx","deviceId":"{d}","osImageHash":"{os}","tcbStatus":"{tcb}"}}}}]"#,
            d = "04".repeat(32),
            os = "01".repeat(32),
        )
    }

    #[test]
    fn the_exit_code_says_whether_the_list_decides_as_expected() {
        assert_eq!(outcome(&case("kms/tcb-status-not-allowed", "OutOfDate")), Ok(0));
        assert_eq!(outcome(&case("kms/no-application", "UpToDate")), Ok(0));
        assert_eq!(outcome(&case("allow", "UpToDate")), Ok(EXIT_NEGATIVE));
    }

    #[test]
    fn cases_that_are_none_are_wrong_usage() {
        for bad in
            ["{", "[{}]", r#"[{"name":"x","expect":"allow","boot":{"deviceId":"04"}}]"#, r#"[{"name":"x","expect":"a","boot":{},"z":1}]"#]
        {
            assert_eq!(outcome(bad).unwrap_err().exit, crate::failure::EXIT_USAGE, "{bad}");
        }
    }
}
