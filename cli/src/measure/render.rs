//! The results of `measure` for people.

use super::{
    explain::{Explanation, RegisterLine},
    report::Report,
};
use crate::output::{Palette, Tone, fields};

/// What each register covers, in the words of the prediction.
const COVERS: [(&str, &str); 5] = [
    ("MRTD", "the firmware"),
    ("RTMR0", "memory map, UEFI variables, ACPI tables"),
    ("RTMR1", "kernel"),
    ("RTMR2", "command line and initrd"),
    ("MEASUREMENT", "firmware, kernel, command line, initrd and vCPUs"),
];
/// Digits of a digest in a comparison; the whole is in the JSON form.
const SHORT: usize = 24;

/// The whole answer.
#[must_use]
pub(super) fn text(palette: Palette, report: &Report) -> String {
    let mut rows = vec![("image", report.image.clone())];
    rows.extend(report.os_image_hash.map(|hash| ("OS image hash", hash.to_string())));
    rows.push(("VM", report.vm.clone()));
    rows.extend(report.tables.as_ref().map(|tables| ("ACPI tables", tables.clone())));
    let mut text = fields(palette, &rows);
    text.push_str("\n\n");
    text.push_str(&match &report.explanation {
        Some(explanation) => comparison(palette, explanation),
        None => registers(palette, report),
    });
    for event in &report.events {
        text.push_str(&format!("\n  RTMR{}  {}  {}", event.imr, palette.paint(Tone::Quiet, &event.digest), event.event));
    }
    text
}

fn registers(palette: Palette, report: &Report) -> String {
    let mut lines = Vec::new();
    for (name, value) in report.registers() {
        let covers = COVERS.iter().find(|(covered, _)| *covered == name).map_or("", |(_, covers)| covers);
        let heading = palette.paint(Tone::Strong, &format!("{name:5}"));
        let (tone, remark) = if value.is_some() { (Tone::Quiet, covers) } else { (Tone::Caution, "cannot be predicted") };
        lines.push(format!("  {heading}  {}", palette.paint(tone, remark)));
        lines.push(format!("    {}", value.map_or_else(|| report.rtmr0_reason.clone().unwrap_or_default(), str::to_owned)));
    }
    lines.join("\n")
}

fn comparison(palette: Palette, explanation: &Explanation) -> String {
    let tone = match (explanation.matches, explanation.is_complete) {
        (true, _) => Tone::Good,
        (false, true) => Tone::Bad,
        (false, false) => Tone::Caution,
    };
    let verdict = match (explanation.matches, explanation.registers.iter().any(|line| line.equal == Some(false))) {
        (true, _) => "SAME",
        (false, true) => "DIFFERENT",
        (false, false) => "UNDETERMINED",
    };
    let mut text = format!("{}\n", palette.paint(if verdict == "DIFFERENT" { Tone::Bad } else { tone }, verdict));
    for sentence in explanation.summary.lines() {
        text.push_str(&format!("  {sentence}\n"));
    }
    text.push('\n');
    for line in &explanation.registers {
        text.push_str(&register(palette, line));
    }
    text.push_str(&palette.paint(Tone::Quiet, "  The signature of the evidence was not checked; `dstack verify` does that."));
    text
}

fn register(palette: Palette, line: &RegisterLine) -> String {
    let (mark, tone) = match line.equal {
        Some(true) => ("as expected", Tone::Good),
        Some(false) => ("differs", Tone::Bad),
        None => ("not predicted", Tone::Caution),
    };
    let mut text = format!("  {}  {}\n", palette.paint(Tone::Strong, &format!("{:5}", line.name)), palette.paint(tone, mark));
    if line.equal == Some(true) {
        return text;
    }
    let pair = |label: &str, value: Option<&str>| format!("{label} {}", value.map_or_else(|| "nothing".to_owned(), short));
    if line.differences.is_empty() {
        text.push_str(&format!("         {}, {}\n", pair("expected", line.expected.as_deref()), pair("found", Some(&line.found))));
    }
    for difference in &line.differences {
        text.push_str(&format!("         entry {}, {}: {}\n", difference.position, difference.event, difference.meaning));
        let sides = format!("{}, {}", pair("expected", difference.expected.as_deref()), pair("found", difference.found.as_deref()));
        text.push_str(&format!("           {}\n", palette.paint(Tone::Quiet, &sides)));
    }
    text
}

fn short(digest: &str) -> String {
    digest.get(..SHORT).map_or_else(|| digest.to_owned(), |head| format!("{head}…"))
}
