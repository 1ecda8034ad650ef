//! `dstack log watch`.

use std::time::Duration;

use dstack_release_log::{Entry, EventKind};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{RemoteLog, args::LogWatchArgs};
use crate::{
    failure::{EXIT_UNDETERMINED, Failure, Outcome},
    output::{Output, Palette, Tone, printable},
};

/// Shows entries of an app, from the first on.
pub(super) async fn watch(args: &LogWatchArgs, output: Output) -> Outcome {
    let wanted = args.app.to_ascii_lowercase();
    let is_id = !wanted.is_empty() && wanted.len() <= 40 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
    if wanted != "all" && !is_id {
        let cause = format!("`{}` is no app id", printable(&args.app, 60));
        return Err(Failure::usage("log/bad-app", cause, "give the first hex digits of the app id, as `dstack ps` shows them, or `all`"));
    }
    let mut log = RemoteLog::open(&args.log).await?;
    loop {
        match look(&mut log, &wanted, output).await {
            // A KMS that is away for a while has not lied.
            Err(failure) if failure.exit == EXIT_UNDETERMINED && !args.once => output.warn(&failure.report.to_string()),
            result => result?,
        }
        if args.once {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

async fn look(log: &mut RemoteLog, wanted: &str, output: Output) -> Outcome {
    let newest = log.checkpoint().await?;
    let mut lines = Vec::new();
    log.advance(newest.head, |index, entry| {
        if wanted == "all" || (!entry.app_id.is_empty() && entry.app_id.starts_with(wanted)) {
            lines.push(line(index, entry, output));
        }
    })
    .await?;
    lines.iter().for_each(|line| output.print(line));
    Ok(())
}

fn line(index: u64, entry: &Entry, output: Output) -> String {
    if output.is_json {
        return serde_json::json!({ "index": index, "entry": entry }).to_string();
    }
    human(index, entry, output.palette)
}

fn human(index: u64, entry: &Entry, palette: Palette) -> String {
    let time = i64::try_from(entry.time).ok().and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
    let time = time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| entry.time.to_string());
    let (word, tone) = match entry.event {
        EventKind::Start => ("start", Tone::Quiet),
        EventKind::Release => ("release", Tone::Good),
        EventKind::Refusal => ("refusal", Tone::Bad),
    };
    let short = |text: &str| printable(text, 12).trim_end_matches('…').to_owned();
    let mut words = vec![format!("{index:>6}"), time, palette.paint(tone, &format!("{word:<7}")), printable(&entry.method, 40)];
    for (label, text) in
        [("app", &entry.app_id), ("instance", &entry.instance_id), ("compose", &entry.compose_hash), ("device", &entry.device_id)]
    {
        if !text.is_empty() {
            words.push(format!("{label} {}", short(text)));
        }
    }
    words.extend([printable(&entry.code, 60), if entry.simulated { "SIMULATED".to_owned() } else { String::new() }]);
    if entry.suppressed > 0 {
        words.push(format!("(+{} refusals without entry)", entry.suppressed));
    }
    let text: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    text.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_got_what_and_cannot_move_the_cursor() {
        let entry = Entry {
            app_id: "ab".repeat(20),
            code: "kms/app\u{1b}[2J".into(),
            method: "GetAppKey".into(),
            suppressed: 3,
            simulated: true,
            ..Entry::new(EventKind::Refusal, 1_700_000_000)
        };

        assert_eq!(
            human(7, &entry, Palette::PLAIN),
            "     7  2023-11-14T22:13:20Z  refusal  GetAppKey  app abababababab  kms/app [2J  SIMULATED  (+3 refusals without entry)"
        );
    }
}
