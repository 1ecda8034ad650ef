//! `dstack verify`: evidence in, verdict out.
//!
//! ```text
//! URL, name or file ─▶ evidence ──────────────────────────┐
//! flags, verify.toml, policy ─▶ anchors, expectations ────┼▶ dstack_verdict::judge ─▶ verdict ─▶ text, JSON, exit code
//! flags, evidence, vendor's services ─▶ papers ───────────┘
//! ```
//! Everything here collects inputs; judging is pure and lives in `dstack-verdict`.

mod bundle;
mod discover;
mod options;
mod papers;
mod render;
mod settings;
mod source;

use std::path::Path;

use dstack_attestation::Policy;
use dstack_verdict::{Question, Subject, Verdict, Word, judge, refuse_before_papers};

use self::{
    options::{Given, fresh_challenge, replace_root},
    settings::Settings,
    source::Source,
};
use crate::{
    args::VerifyArgs,
    failure::{EXIT_NEGATIVE, EXIT_UNDETERMINED, Failure, Outcome},
    home::Home,
    output::Output,
    progress::Progress,
};

const NOT_EVIDENCE: &str = "give a quote, report, document, certificate or JSON with evidence, whole and unchanged";
const NOT_PAPERS: &str = "give the file again, whole and unchanged";

/// Verifies and prints the verdict; returns the exit code.
///
/// Errors: wrong usage, or the question could not be decided.
pub(crate) async fn verify(args: &VerifyArgs, output: Output) -> Outcome<u8> {
    let undetermined = |failure: Failure| if failure.exit == EXIT_NEGATIVE { failure.with_exit(EXIT_UNDETERMINED) } else { failure };
    let verdict = decide(args, output).await.map_err(undetermined)?;
    output.result(&verdict, |palette| render::render(palette, &verdict))?;
    Ok(match verdict.word {
        Word::Verified | Word::VerifiedWithCaveats => 0,
        Word::Simulated if args.allow_simulated => 0,
        Word::Simulated | Word::NotVerified => EXIT_NEGATIVE,
    })
}

async fn decide(args: &VerifyArgs, output: Output) -> Outcome<Verdict> {
    let mut given = Given::read(args)?;
    let home = Home::from_env()?;
    let source = Source::find(&args.source, &home).await?;
    let name = source.to_string();
    let settings = choose_settings(args, &source, &home)?;
    let progress = Progress::new(output);
    let blank = Verdict::blank(&name, &settings.origin, given.now);
    let (bytes, mut connection) = match &source {
        Source::Url { url, .. } => {
            let is_asked_for = given.challenge.is_some();
            let challenge = given.challenge.get_or_insert_with(fresh_challenge);
            let found = discover::discover(url, challenge, &progress).await?;
            // Evidence that was made for somebody else answers no challenge of ours; the verdict says so. One that the user set must hold.
            if !found.is_fresh && !is_asked_for {
                given.challenge = None;
            }
            (found.evidence, Some(found.connection))
        }
        Source::File(path) => {
            let bytes = options::read_file(path)?;
            let connection = bundle::connection(&bytes);
            (bytes, connection)
        }
    };
    let mut subject = match Subject::recognise(&bytes) {
        Ok(subject) => subject,
        Err(error) => return Ok(blank.unreadable(error.to_string(), NOT_EVIDENCE)),
    };
    if let Err(reason) = add_logs(&mut subject, &given) {
        return Ok(blank.unreadable(reason, NOT_PAPERS));
    }
    let mut question = question(args, &given, &settings, &subject)?;
    match papers::at_hand(&given, &settings, &subject) {
        Ok(endorsements) => question.endorsements = endorsements,
        Err(reason) => return Ok(blank.unreadable(reason, NOT_PAPERS)),
    }
    if let Some(verdict) = refuse_before_papers(&subject, &question, &name) {
        return Ok(verdict);
    }
    papers::fetch_missing(&mut question.endorsements, &subject, &settings, args.offline, &progress).await?;
    if let Some(connection) = &mut connection {
        papers::fetch_for_gateway(connection, &settings, args.offline, &progress).await?;
    }
    if let Some(path) = &args.save {
        bundle::save(path, &bytes, &subject, &question, connection.as_ref())?;
        output.note(&format!("Evidence saved; verify it again with `dstack verify {}`.", path.display()));
    }
    let mut verdict = judge(&subject, &question, &name);
    if let Some(connection) = &connection {
        discover::judge_connection(&mut verdict, connection, &question);
    }
    Ok(verdict)
}

/// Adds the logs that came in files of their own.
fn add_logs(subject: &mut Subject, given: &Given) -> Result<(), String> {
    if let Some(events) = given.events()? {
        subject.set_event_log(events).map_err(|error| error.to_string())?;
    }
    if let Some(ccel) = &given.ccel {
        subject.set_ccel(ccel).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn question(args: &VerifyArgs, given: &Given, settings: &Settings, subject: &Subject) -> Outcome<Question> {
    let mut question = Question {
        policy_name: settings.origin.clone(),
        anchors: settings.anchors.clone(),
        root_origin: format!("[danger] simulated_root of {}", settings.origin),
        policy: settings.policy.clone(),
        expectations: settings.expectations.clone(),
        challenge: given.challenge.clone(),
        ..Question::open(given.now)
    };
    if let Some(root) = &given.root {
        question.anchors = replace_root(question.anchors, subject.platform(), root)?;
        question.root_origin = "given with --root".to_owned();
    }
    if let Some(path) = &args.policy {
        question.policy = load_policy(path)?;
        question.policy_name = path.display().to_string();
    }
    Ok(question)
}

fn load_policy(path: &Path) -> Outcome<Policy> {
    let fix = "correct the document; the reference of policies shows every key";
    let refused = |error: &dyn std::fmt::Display| Failure::usage("verify/bad-policy", format!("{}: {error}", path.display()), fix);
    let text = String::from_utf8(options::read_file(path)?).map_err(|_| refused(&"the policy is not text in UTF-8"))?;
    Policy::from_toml(&text).map_err(|error| refused(&error))
}

/// The settings that the user names; for apps of the local stack those of the stack; else the built-in ones.
fn choose_settings(args: &VerifyArgs, source: &Source, home: &Home) -> Outcome<Settings> {
    if let Some(path) = &args.config {
        return Settings::load(path, &path.display().to_string());
    }
    match source {
        Source::Url { is_local_stack: true, .. } => local_settings(&home.verify_file()),
        _ => Ok(Settings::built_in()),
    }
}

fn local_settings(path: &Path) -> Outcome<Settings> {
    if !path.exists() {
        return Ok(Settings::built_in());
    }
    Settings::load(path, &format!("{} (local stack, used by itself)", path.display()))
}
