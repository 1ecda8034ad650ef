//! The verdict for people.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::verdict::{Mark, Verdict, Word};
use crate::output::{Palette, Tone, printable};

/// The verdict as text, widest lines about 110 columns but for hashes.
#[must_use]
pub(super) fn render(palette: Palette, verdict: &Verdict) -> String {
    let mut sections = vec![headline(palette, verdict)];
    sections.push(section(palette, "Rests on", anchors(palette, verdict)));
    sections.push(section(palette, "Checks", checks(palette, verdict)));
    if !verdict.caveats.is_empty() && verdict.word != Word::NotVerified {
        let lines = verdict.caveats.iter().map(|caveat| format!("  {} {}", palette.paint(Tone::Caution, "!"), printable(caveat, 400)));
        sections.push(section(palette, "Caveats", lines.collect()));
    }
    let identity = identity(palette, verdict);
    if !identity.is_empty() {
        let title = if verdict.word == Word::NotVerified { "Claims (not verified)" } else { "Identity" };
        sections.push(section(palette, title, identity));
    }
    if let Some(registers) = &verdict.registers {
        let mut rows = vec![("MRTD", &registers.mrtd)];
        rows.extend(["RTMR0", "RTMR1", "RTMR2", "RTMR3"].into_iter().zip(&registers.rtmr));
        rows.push(("MRCONFIGID", &registers.mr_config_id));
        let lines = rows.into_iter().map(|(name, value)| format!("  {name:10}  {}", palette.paint(Tone::Quiet, value)));
        let title = if verdict.word == Word::NotVerified { "Registers (as the evidence has them)" } else { "Registers" };
        sections.push(section(palette, title, lines.collect()));
    }
    sections.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn headline(palette: Palette, verdict: &Verdict) -> String {
    let (tone, sentence) = match verdict.word {
        Word::Verified => (Tone::Good, "every check holds."),
        Word::VerifiedWithCaveats => (Tone::Caution, "nothing is wrong; read what is not known."),
        Word::Simulated => (Tone::Caution, "every check holds under the root of a software TEE; nothing about hardware is proven."),
        Word::NotVerified => (Tone::Bad, "do not trust this app."),
    };
    let mut lines = vec![format!("{}  {}", palette.paint(tone, &verdict.word.to_string()), palette.paint(Tone::Strong, sentence))];
    if verdict.word == Word::NotVerified {
        lines.push(format!("  why     {}", printable(&verdict.reason, 600)));
        lines.push(format!("  fix     {}", printable(&verdict.fix, 300)));
    }
    lines.push(format!("  source  {}", printable(&verdict.source, 200)));
    lines.push(format!("  policy  {}", verdict.policy));
    lines.join("\n")
}

fn section(palette: Palette, title: &str, lines: Vec<String>) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!("{}\n{}", palette.paint(Tone::Strong, title), lines.join("\n"))
}

fn anchors(palette: Palette, verdict: &Verdict) -> Vec<String> {
    let line = |anchor: &super::verdict::Anchor| {
        let text = printable(&anchor.anchor, 200);
        let is_doubtful = text.starts_with("SIMULATED") || text.starts_with("UNKNOWN");
        let text = if is_doubtful { palette.paint(Tone::Caution, &text) } else { text };
        format!("  {:12}  {text}\n  {:12}  {}", anchor.role, "", palette.paint(Tone::Quiet, &printable(&anchor.origin, 300)))
    };
    verdict.trust_anchors.iter().map(line).collect()
}

fn checks(palette: Palette, verdict: &Verdict) -> Vec<String> {
    let line = |check: &super::verdict::CheckLine| {
        let (mark, tone) = match check.result {
            Mark::Passed => ("✓", Tone::Good),
            Mark::Caveat => ("!", Tone::Caution),
            Mark::Failed => ("✗", Tone::Bad),
            Mark::NotReached => ("·", Tone::Quiet),
        };
        let says = if check.result == Mark::NotReached { palette.paint(Tone::Quiet, check.says) } else { check.says.to_owned() };
        let first = format!("  {} {says}", palette.paint(tone, mark));
        match check.result {
            Mark::NotReached => first + &palette.paint(Tone::Quiet, "  (not reached)"),
            _ => format!("{first}\n      {}", palette.paint(Tone::Quiet, &printable(&check.found, 600))),
        }
    };
    verdict.checks.iter().map(line).collect()
}

fn identity(palette: Palette, verdict: &Verdict) -> Vec<String> {
    let identity = &verdict.identity;
    let mut rows = Vec::new();
    let mut push =
        |label: &'static str, value: Option<String>| rows.extend(value.filter(|value| !value.is_empty()).map(|value| (label, value)));
    push("name", identity.app_name.as_ref().map(|name| printable(name, 80)));
    push("app", identity.app_id.map(|id| id.to_string()));
    push("compose hash", identity.compose_hash.map(|hash| hash.to_string()));
    push("instance", Some(identity.instance_id.clone()));
    push("OS image", identity.os_image_hash.map(|hash| hash.to_string()));
    push("machine", identity.device_id.clone());
    push("platform TCB", identity.tcb_status.clone());
    push("valid until", verdict.valid_until.and_then(date));
    rows.into_iter().map(|(label, value)| format!("  {}  {value}", palette.paint(Tone::Quiet, &format!("{label:12}")))).collect()
}

fn date(seconds: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    time.format(&Rfc3339).ok()
}
