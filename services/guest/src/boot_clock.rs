//! Milliseconds since the kernel started, and the marks of the boot timeline.

use std::{collections::BTreeMap, sync::Mutex};

use nix::time::{ClockId, clock_gettime};

/// Environment variable that carries the marks from one stage of `dstack-init` to the next.
pub const TIMELINE_VARIABLE: &str = "DSTACK_TIMELINE";

/// Milliseconds since the kernel started; 0 where the clock cannot be read.
#[must_use]
pub fn elapsed_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(millis)
    })
}

/// When each phase ended, in milliseconds since the kernel started.
#[derive(Debug, Default)]
pub struct Timeline {
    marks: Mutex<BTreeMap<String, u64>>,
}

impl Timeline {
    /// Takes up the marks of an earlier stage: `name=ms` joined by commas. What cannot be read is left out.
    #[must_use]
    pub fn resume(text: &str) -> Self {
        let marks = text
            .split(',')
            .filter_map(|mark| mark.split_once('='))
            .filter_map(|(name, ms)| Some((name.to_owned(), ms.parse().ok()?)))
            .collect();
        Self { marks: Mutex::new(marks) }
    }

    /// Records that `phase` ended now. The first mark of a phase stays.
    pub fn mark(&self, phase: &str) {
        self.mark_at(phase, elapsed_ms());
    }

    /// Records that `phase` ended at `ms`.
    pub fn mark_at(&self, phase: &str, ms: u64) {
        if let Ok(mut marks) = self.marks.lock() {
            marks.entry(phase.to_owned()).or_insert(ms);
        }
    }

    /// The marks as `name=ms` joined by commas, for [`Timeline::resume`].
    #[must_use]
    pub fn handover(&self) -> String {
        let Ok(marks) = self.marks.lock() else { return String::new() };
        marks.iter().map(|(name, ms)| format!("{name}={ms}")).collect::<Vec<_>>().join(",")
    }

    /// The marks as a JSON object, phase to milliseconds.
    #[must_use]
    pub fn json(&self) -> String {
        let Ok(marks) = self.marks.lock() else { return "{}".to_owned() };
        serde_json::to_string(&*marks).unwrap_or_else(|_| "{}".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_the_handover_and_the_first_one_stays() {
        let first = Timeline::default();
        first.mark_at("initrd", 3200);
        first.mark_at("root", 3900);

        let second = Timeline::resume(&format!("{},garbage,x=y", first.handover()));
        second.mark_at("initrd", 1);

        assert_eq!(second.json(), r#"{"initrd":3200,"root":3900}"#);
    }

    #[test]
    fn the_clock_does_not_run_backwards() {
        let before = elapsed_ms();

        assert!(elapsed_ms() >= before && before > 0);
    }
}
