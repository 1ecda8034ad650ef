//! Log and register stay in step, wherever a crash falls.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use dstack_attestation::ReportData;
use dstack_attester::{Attester, AttesterError, RuntimeLog, TdxDevice, TdxPaths, TeeDevice};
use dstack_event_log::{Digest384, Event, EventVersion, RuntimeEvent, extend};

/// What happens at the next extension.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Works,
    FailsBefore,
    FailsAfter,
}

#[derive(Clone)]
struct FakeDevice(Arc<Mutex<(Digest384, Next)>>);

impl FakeDevice {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(([0; 48], Next::Works))))
    }

    fn next(&self, next: Next) {
        self.0.lock().unwrap().1 = next;
    }
}

impl TeeDevice for FakeDevice {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn quote(&self, _: &ReportData) -> Result<Vec<u8>, AttesterError> {
        Ok(self.rtmr3()?.to_vec())
    }

    fn rtmr3(&self) -> Result<Digest384, AttesterError> {
        Ok(self.0.lock().unwrap().0)
    }

    fn extend_rtmr3(&self, digest: &Digest384) -> Result<(), AttesterError> {
        let mut state = self.0.lock().unwrap();
        if state.1 != Next::FailsBefore {
            state.0 = extend(&state.0, digest);
        }
        match std::mem::replace(&mut state.1, Next::Works) {
            Next::Works => Ok(()),
            _ => Err(AttesterError::Answer { what: "nothing".into() }),
        }
    }

    fn boot_events(&self) -> Result<Vec<Event>, AttesterError> {
        Ok(Vec::new())
    }
}

fn event(name: &str) -> RuntimeEvent {
    RuntimeEvent::new(name, name.as_bytes().to_vec(), EventVersion::V1)
}

fn names(directory: &Path, device: &FakeDevice) -> Vec<String> {
    let log = RuntimeLog::open(directory, device).unwrap();
    log.events(device).unwrap().into_iter().map(|event| event.event).collect()
}

#[test]
fn failed_extension_is_settled_by_the_register() {
    let directory = tempfile::tempdir().unwrap();
    let device = FakeDevice::new();
    let log = RuntimeLog::open(directory.path(), &device).unwrap();
    log.measure(&device, &event("one")).unwrap();

    device.next(Next::FailsBefore);
    assert!(log.measure(&device, &event("lost")).is_err());
    device.next(Next::FailsAfter);
    assert!(log.measure(&device, &event("kept")).is_err());
    log.measure(&device, &event("two")).unwrap();

    assert_eq!(names(directory.path(), &device), ["one", "kept", "two"]);
}

/// Leaves the files as a crash at each step of `measure` would.
#[test]
fn crash_at_every_step_leaves_a_log_that_replays() {
    let steps: [(&str, bool, &str, &[&str]); 4] = [
        ("journal written, not extended", false, "", &["one"]),
        ("extended, not logged", true, "", &["one", "crash"]),
        ("extended, line torn", true, "{\"event\":\"cra", &["one", "crash"]),
        ("extended and logged, journal left", true, "{\"event\":\"crash\",\"payload\":\"Y3Jhc2g=\"}\n", &["one", "crash"]),
    ];
    for (step, extended, appended, expected) in steps {
        let directory = tempfile::tempdir().unwrap();
        let device = FakeDevice::new();
        RuntimeLog::open(directory.path(), &device).unwrap().measure(&device, &event("one")).unwrap();
        let before = hex::encode(device.rtmr3().unwrap());
        let journal = format!("{{\"before\":\"{before}\",\"event\":{}}}", serde_json::to_string(&event("crash")).unwrap());
        fs::write(directory.path().join("runtime_event.journal"), journal).unwrap();
        if extended {
            device.extend_rtmr3(&event("crash").digest()).unwrap();
        }
        let path = directory.path().join("runtime_events.log");
        fs::write(&path, format!("{}{appended}", fs::read_to_string(&path).unwrap())).unwrap();

        assert_eq!(names(directory.path(), &device), expected, "{step}");
        assert!(!directory.path().join("runtime_event.journal").exists(), "{step}");
    }
}

#[test]
fn register_extended_beside_the_log_is_an_error_that_stays() {
    let directory = tempfile::tempdir().unwrap();
    let device = FakeDevice::new();
    let log = RuntimeLog::open(directory.path(), &device).unwrap();
    device.extend_rtmr3(&[1; 48]).unwrap();

    assert!(matches!(log.measure(&device, &event("one")).unwrap_err(), AttesterError::LogOutOfStep { .. }));
    assert!(matches!(RuntimeLog::open(directory.path(), &device).unwrap_err(), AttesterError::LogOutOfStep { .. }));
}

#[test]
fn two_processes_share_a_log_that_only_they_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let device = FakeDevice::new();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (device, path) = (device.clone(), directory.path().to_owned());
            std::thread::spawn(move || {
                let log = RuntimeLog::open(path, &device).unwrap();
                (0..10).for_each(|number| log.measure(&device, &event(&format!("n{number}"))).unwrap());
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }

    assert_eq!(names(directory.path(), &device).len(), 40);
    let mode = fs::metadata(directory.path().join("runtime_events.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn quote_comes_with_the_log_of_its_moment_and_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let attester = Attester::with_device(Box::new(FakeDevice::new()), directory.path()).unwrap();
    attester.extend_runtime_event("app-id", &[1; 20], EventVersion::V1).unwrap();

    let quoted = attester.quote(&[5; 64], r#"{"vm_config":"{}"}"#).unwrap();

    let log = dstack_event_log::EventLog::parse_json(&quoted.event_log).unwrap();
    assert_eq!(log.registers().get(3).unwrap().as_slice(), quoted.quote);
    assert_eq!((quoted.attestation.vm_config().as_str(), quoted.attestation.report_data), ("{}", [5; 64]));
}

#[test]
fn names_and_payloads_that_mislead_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let attester = Attester::with_device(Box::new(FakeDevice::new()), directory.path()).unwrap();
    let extend = |name: &str, length: usize, version| attester.extend_runtime_event(name, &vec![0; length], version);

    for (name, length) in [("", 0), ("a:b", 0), (&*"x".repeat(257), 0), ("ok", 65_537)] {
        assert!(matches!(extend(name, length, EventVersion::V1), Err(AttesterError::Event { .. })), "{name}");
    }
    assert!(extend("a:b", 65_536, EventVersion::V2).is_ok());
    assert_eq!(attester.runtime_events().unwrap().len(), 1);
}

fn fake_paths(directory: &Path) -> TdxPaths {
    TdxPaths { tsm_report: directory.join("report"), rtmr3: directory.join("rtmr3:sha384"), device: directory.join("tdx_guest") }
}

#[test]
fn tdx_is_recognised_by_its_files_and_reads_and_extends_the_register() {
    let directory = tempfile::tempdir().unwrap();
    assert!(TdxDevice::detect(fake_paths(directory.path())).is_none());
    fs::write(directory.path().join("rtmr3:sha384"), [3; 48]).unwrap();

    let device = TdxDevice::detect(fake_paths(directory.path())).unwrap();

    assert_eq!(device.rtmr3().unwrap(), [3; 48]);
    device.extend_rtmr3(&[4; 48]).unwrap();
    assert_eq!(fs::read(directory.path().join("rtmr3:sha384")).unwrap(), [4; 48]);
    fs::write(directory.path().join("rtmr3:sha384"), [3; 47]).unwrap();
    assert!(matches!(device.rtmr3().unwrap_err(), AttesterError::Answer { .. }));
    assert!(matches!(device.quote(&[0; 64]).unwrap_err(), AttesterError::Device { operation: "creating", .. }));
    fs::create_dir(directory.path().join("report")).unwrap();
    assert!(matches!(device.quote(&[0; 64]).unwrap_err(), AttesterError::Device { operation: "reading", .. }));
    assert_eq!(fs::read_dir(directory.path().join("report")).unwrap().count(), 0);
}
