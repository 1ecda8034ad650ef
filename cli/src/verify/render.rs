//! The verdict for people: first what it means, then what it rests on, then every check, last every register.

use dstack_verdict::{Anchor, CheckLine, Mark, Verdict, Word};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::output::{Palette, Tone, printable};

/// Widest line of running text.
const WIDTH: usize = 108;

/// What a longer word counts for.
const MAX_WORD: usize = 20;

/// The verdict as text; only hashes make lines wider than a terminal.
#[must_use]
pub(super) fn render(palette: Palette, verdict: &Verdict) -> String {
    let title = |plain: &'static str, doubtful: &'static str| if verdict.word == Word::NotVerified { doubtful } else { plain };
    let sections = [
        headline(palette, verdict),
        section(palette, "Read this", caveats(palette, verdict)),
        section(palette, "Rests on", verdict.trust_anchors.iter().map(|anchor| anchor_line(palette, anchor)).collect()),
        section(palette, "Checks", checks(palette, verdict)),
        section(palette, title("Identity", "Identity (claimed, not verified)"), identity(palette, verdict)),
        section(palette, title("Measured", "Measured (as the evidence has it, not verified)"), claims(palette, verdict)),
    ];
    sections.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn headline(palette: Palette, verdict: &Verdict) -> String {
    let (tone, sentence) = match verdict.word {
        Word::Verified => (Tone::Good, "every check holds."),
        Word::VerifiedWithCaveats => (Tone::Caution, "nothing is wrong; read what is not known."),
        Word::Simulated => {
            (Tone::Caution, "every check holds under a root that is no hardware vendor's; nothing about hardware is proven.")
        }
        Word::NotVerified => (Tone::Bad, "do not trust this."),
    };
    let mut lines = vec![format!("{}  {}", palette.paint(tone, &verdict.word.to_string()), palette.paint(Tone::Strong, sentence))];
    let mut row = |label: &str, value: &str| {
        lines.extend(wrapped(&format!("  {label:8}  "), &printable(value, 700)).into_iter().map(|line| paint_label(palette, &line, label)));
    };
    if verdict.word == Word::NotVerified {
        row("why", &verdict.reason);
        row("fix", &verdict.fix);
    }
    row("source", &verdict.source);
    row("hardware", hardware(&verdict.platform));
    row("policy", &verdict.policy);
    lines.join("\n")
}

fn paint_label(palette: Palette, line: &str, label: &str) -> String {
    line.replacen(label, &palette.paint(Tone::Quiet, label), 1)
}

/// What kind of machine signs, in words.
fn hardware(platform: &str) -> &str {
    match platform {
        "tdx" => "virtual machine that the CPU hides from its host (Intel TDX)",
        "sgx" => "enclave inside a process (Intel SGX)",
        "sev-snp" => "virtual machine that the CPU hides from its host (AMD SEV-SNP)",
        "nitro-enclave" => "enclave of Amazon's cloud (AWS Nitro)",
        "aws-nitro-tpm" => "virtual machine of Amazon's cloud (AWS NitroTPM)",
        "nvidia-gpu" => "graphics processor (NVIDIA confidential computing)",
        "arm-cca" => "virtual machine that the CPU hides from its host (Arm CCA)",
        "unknown" => "cannot be told",
        other => other,
    }
}

fn caveats(palette: Palette, verdict: &Verdict) -> Vec<String> {
    if verdict.word == Word::NotVerified {
        return Vec::new();
    }
    let mark = palette.paint(Tone::Caution, "!");
    let line = |caveat: &String| wrapped("  ! ", &printable(caveat, 500)).join("\n").replacen('!', &mark, 1);
    verdict.caveats.iter().map(line).collect()
}

fn section(palette: Palette, title: &str, lines: Vec<String>) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!("{}\n{}", palette.paint(Tone::Strong, title), lines.join("\n"))
}

fn anchor_line(palette: Palette, anchor: &Anchor) -> String {
    let text = printable(&anchor.anchor, 200);
    let is_doubtful = text.starts_with("SIMULATED") || text.starts_with("UNKNOWN") || text.starts_with("NOBODY");
    let text = if is_doubtful { palette.paint(Tone::Caution, &text) } else { text };
    let origin = printable(&anchor.origin, 300);
    let origin = if origin.is_empty() { String::new() } else { format!("\n  {:15}  {}", "", palette.paint(Tone::Quiet, &origin)) };
    format!("  {:15}  {text}{origin}", anchor.role)
}

fn checks(palette: Palette, verdict: &Verdict) -> Vec<String> {
    verdict.checks.iter().map(|check| check_line(palette, check)).collect()
}

fn check_line(palette: Palette, check: &CheckLine) -> String {
    let (mark, tone) = match check.outcome {
        Mark::Passed => ("✓", Tone::Good),
        Mark::Remark => ("!", Tone::Caution),
        Mark::Unknown => ("?", Tone::Caution),
        Mark::Skipped => ("·", Tone::Quiet),
        Mark::Failed => ("✗", Tone::Bad),
    };
    if check.outcome == Mark::Skipped {
        let text = format!("{}  ({})", check.says, printable(&check.detail, 200));
        return format!("  {} {}", palette.paint(tone, mark), palette.paint(Tone::Quiet, &text));
    }
    let details = wrapped("      ", &printable(&check.detail, 700));
    let details: Vec<String> = details.into_iter().map(|line| palette.paint(Tone::Quiet, &line)).collect();
    format!("  {} {}\n{}", palette.paint(tone, mark), check.says, details.join("\n"))
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
    push("firmware", verdict.tcb_status.clone());
    push("valid until", verdict.valid_until.and_then(date));
    rows.into_iter().map(|(label, value)| format!("  {}  {value}", palette.paint(Tone::Quiet, &format!("{label:12}")))).collect()
}

fn claims(palette: Palette, verdict: &Verdict) -> Vec<String> {
    // What the section above shows already.
    const SHOWN: [&str; 5] = ["app_id", "compose_hash", "instance_id", "os_image_hash", "device_id"];
    let shown = verdict.claims.iter().filter(|claim| !SHOWN.contains(&&*claim.name));
    let width = shown.clone().map(|claim| claim.name.len()).max().unwrap_or(0);
    shown
        .map(|claim| {
            let is_zero = !claim.value.is_empty() && claim.value.bytes().all(|byte| byte == b'0') && claim.value.len() > 8;
            let value = if is_zero { format!("0 ({} bytes)", claim.value.len() / 2) } else { printable(&claim.value, 1200) };
            format!("  {:width$}  {}", claim.name, palette.paint(Tone::Quiet, &value))
        })
        .collect()
}

/// `text` in lines of at most [`WIDTH`], the first behind `prefix`, the others below the text.
fn wrapped(prefix: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(prefix.chars().count());
    let mut lines = vec![prefix.to_owned()];
    let mut length = indent.len();
    for word in text.split(' ') {
        // A hash is as wide as it is; breaking before it helps nobody.
        let width = word.chars().count().min(MAX_WORD);
        if length > indent.len() && length + 1 + width > WIDTH {
            lines.push(indent.clone());
            length = indent.len();
        }
        if let Some(line) = lines.last_mut() {
            if length > indent.len() {
                line.push(' ');
                length += 1;
            }
            line.push_str(word);
            length += width;
        }
    }
    lines
}

fn date(seconds: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    time.format(&Rfc3339).ok()
}
