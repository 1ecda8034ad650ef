//! What a boot spent its time on.

use std::collections::BTreeMap;

use dstack_api::{
    vmm::{GuestEvent, VmInfo},
    wire::guest_event::{BOOT_PROGRESS, BOOT_TIMELINE},
};
use serde::Serialize;

use crate::output::{Palette, Tone, printable};

/// Columns of the longest bar.
const BAR_WIDTH: u64 = 24;

/// One phase of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Phase {
    /// What was done.
    pub name: String,
    /// Milliseconds from acceptance until it ended.
    pub until_ms: u64,
    /// Milliseconds it took.
    pub took_ms: u64,
}

/// The phases of the last boot, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Timeline {
    /// As seen by the host: what was announced, until the next announcement.
    pub phases: Vec<Phase>,
    /// As the guest's own clock saw it, where it said so: end of each phase.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guest: Vec<Phase>,
}

impl Timeline {
    /// The phases of the VM's last start.
    #[must_use]
    pub(crate) fn of(vm: &VmInfo) -> Self {
        let start = if vm.started_at_ms > 0 { vm.started_at_ms } else { vm.created_at_ms };
        let events: Vec<&GuestEvent> = vm.events.iter().filter(|event| event.timestamp >= start).collect();
        Self { phases: host_phases(start, &events), guest: guest_phases(&events) }
    }

    /// Adds a phase that ended `until_ms` after acceptance.
    pub(crate) fn push(&mut self, name: &str, until_ms: u64) {
        let before = self.phases.last().map_or(0, |phase| phase.until_ms);
        self.phases.push(Phase { name: name.to_owned(), until_ms, took_ms: until_ms.saturating_sub(before) });
    }

    /// A table with bars.
    #[must_use]
    pub(crate) fn render(&self, palette: Palette) -> String {
        let mut lines =
            vec![palette.paint(Tone::Strong, "Boot timeline") + &palette.paint(Tone::Quiet, "  (ms since the VMM accepted the start)")];
        lines.extend(render_phases(palette, &self.phases));
        if !self.guest.is_empty() {
            lines.push(palette.paint(Tone::Quiet, "  inside the guest (ms since its kernel started)"));
            lines.extend(render_phases(palette, &self.guest));
        }
        lines.join("\n")
    }
}

/// An announcement says what begins, so it names the time until the next one.
fn host_phases(start: u64, events: &[&GuestEvent]) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let (mut name, mut since) = ("firmware, kernel, initrd".to_owned(), start);
    for event in events.iter().filter(|event| event.event == BOOT_PROGRESS) {
        let body = printable(&event.body, 48);
        if body == "booting" || body == name {
            continue;
        }
        let until_ms = event.timestamp.saturating_sub(start);
        phases.push(Phase { name: std::mem::replace(&mut name, body), until_ms, took_ms: event.timestamp.saturating_sub(since) });
        since = event.timestamp;
    }
    phases
}

fn guest_phases(events: &[&GuestEvent]) -> Vec<Phase> {
    let Some(event) = events.iter().rev().find(|event| event.event == BOOT_TIMELINE) else { return Vec::new() };
    let marks: BTreeMap<String, u64> = serde_json::from_str(&event.body).unwrap_or_default();
    let mut marks: Vec<(String, u64)> = marks.into_iter().take(64).collect();
    marks.sort_by_key(|(_, ms)| *ms);
    let mut before = 0;
    let phase = |(name, ms): (String, u64)| {
        let took_ms = ms - std::mem::replace(&mut before, ms);
        Phase { name: printable(&name, 48), until_ms: ms, took_ms }
    };
    marks.into_iter().map(phase).collect()
}

fn render_phases(palette: Palette, phases: &[Phase]) -> Vec<String> {
    let width = phases.iter().map(|phase| phase.name.chars().count()).max().unwrap_or(0);
    let longest = phases.iter().map(|phase| phase.took_ms).max().unwrap_or(0).max(1);
    let line = |phase: &Phase| {
        let bar = "▇".repeat(usize::try_from((phase.took_ms * BAR_WIDTH).div_ceil(longest)).unwrap_or(0));
        let bar = palette.paint(Tone::Good, &bar);
        format!("  {:width$} {:>7} ms  at {:>7}  {bar}", phase.name, phase.took_ms, phase.until_ms).trim_end().to_owned()
    };
    phases.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, body: &str, timestamp: u64) -> GuestEvent {
        GuestEvent { event: event.into(), body: body.into(), timestamp }
    }

    fn vm() -> VmInfo {
        let events = vec![
            event(BOOT_PROGRESS, "done", 500),
            event(BOOT_PROGRESS, "booting", 1010),
            event(BOOT_PROGRESS, "requesting app keys", 6200),
            event(BOOT_PROGRESS, "mounting data disk", 6900),
            event(BOOT_PROGRESS, "starting containers", 14_000),
            event("instance.info", "{}", 14_100),
            event(BOOT_TIMELINE, "{\"initrd\":3200,\"root\":3900,\"evil\\u001b\":4000}", 19_900),
            event(BOOT_PROGRESS, "done", 20_000),
        ];
        VmInfo { started_at_ms: 1000, events, ..VmInfo::default() }
    }

    #[test]
    fn phases_of_the_last_start_only() {
        let mut timeline = Timeline::of(&vm());
        timeline.push("first HTTP answer", 19_500);

        insta::assert_snapshot!(timeline.render(Palette::PLAIN), @r"
        Boot timeline  (ms since the VMM accepted the start)
          firmware, kernel, initrd    5200 ms  at    5200  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
          requesting app keys          700 ms  at    5900  ▇▇▇
          mounting data disk          7100 ms  at   13000  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
          starting containers         6000 ms  at   19000  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
          first HTTP answer            500 ms  at   19500  ▇▇
          inside the guest (ms since its kernel started)
          initrd    3200 ms  at    3200  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
          root       700 ms  at    3900  ▇▇▇▇▇▇
          evil       100 ms  at    4000  ▇
        ");
    }

    #[test]
    fn no_events_no_phases() {
        assert_eq!(Timeline::of(&VmInfo::default()), Timeline::default());
    }
}
