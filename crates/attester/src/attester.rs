//! One TEE with its runtime log.

use std::path::{Path, PathBuf};

use dstack_attestation::{Attestation, ReportData};
use dstack_event_log::{Event, EventVersion, RuntimeEvent};

use crate::{AttesterError, RuntimeLog, SealingKey, TdxDevice, TdxPaths, TeeDevice};

const MAX_NAME_BYTES: usize = 256;
const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// TEEs that exist but are not usable here.
const OTHER_TEES: &[&str] = &["/dev/sev-guest", "/dev/nsm"];

/// Where things are; the defaults are right inside a guest.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the runtime log.
    pub log_directory: PathBuf,
    /// The kernel's TDX interfaces.
    pub tdx: TdxPaths,
    /// Device of the software TEE as an endpoint; used only in builds with the feature `simulated` and without TEE hardware.
    pub simulated_endpoint: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_directory: "/run/log/dstack".into(),
            tdx: TdxPaths::default(),
            simulated_endpoint: format!("vsock://2:{}", dstack_api::tee_simulator::DEVICE_PORT),
        }
    }
}

/// A quote with everything a verifier asks for beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// Raw quote.
    pub quote: Vec<u8>,
    /// JSON array with full digests.
    pub event_log: String,
    /// What was quoted.
    pub report_data: ReportData,
    /// The envelope; encode it with [`Attestation::encode`], [`Attestation::stripped`] for a certificate.
    pub attestation: Attestation,
}

/// The TEE of this machine, with its runtime log. Calls block.
pub struct Attester {
    device: Box<dyn TeeDevice>,
    log: RuntimeLog,
}

impl std::fmt::Debug for Attester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attester").field("device", &self.device.name()).field("log", &self.log).finish()
    }
}

impl Attester {
    /// Finds the TEE. Real hardware comes first; a software TEE is considered only where it is compiled in and there is no other device.
    pub fn open(options: &Options) -> Result<Self, AttesterError> {
        if let Some(device) = TdxDevice::detect(options.tdx.clone()) {
            return Self::with_device(Box::new(device), &options.log_directory);
        }
        if let Some(device) = OTHER_TEES.iter().map(Path::new).find(|device| device.exists()) {
            return Err(AttesterError::NotImplemented { device: device.to_owned() });
        }
        #[cfg(feature = "simulated")]
        {
            let device = crate::SimulatedDevice::connect(&options.simulated_endpoint)?;
            tracing::warn!("no TEE device: evidence comes from the software TEE and proves nothing about hardware");
            Self::with_device(Box::new(device), &options.log_directory)
        }
        #[cfg(not(feature = "simulated"))]
        Err(AttesterError::NoTee)
    }

    /// An attester over a given device.
    pub fn with_device(device: Box<dyn TeeDevice>, log_directory: &Path) -> Result<Self, AttesterError> {
        let log = RuntimeLog::open(log_directory, device.as_ref())?;
        Ok(Self { device, log })
    }

    /// `tdx` or `simulated`.
    #[must_use]
    pub fn device_name(&self) -> &'static str {
        self.device.name()
    }

    /// A key that only the same measured system gets again on this machine, for `label`.
    ///
    /// Errors: the device has none, as TDX.
    pub fn sealing_key(&self, label: &str) -> Result<SealingKey, AttesterError> {
        self.device.sealing_key(label)
    }

    /// Measures a runtime event into RTMR3 and logs it.
    ///
    /// `name`: 1 to 256 bytes. In version 1 it must not contain a colon, which would make two events share a digest.
    pub fn extend_runtime_event(&self, name: &str, payload: &[u8], version: EventVersion) -> Result<(), AttesterError> {
        let refuse = |reason| Err(AttesterError::Event { name: name.chars().take(64).collect(), reason });
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return refuse("the name must have 1 to 256 bytes");
        }
        if version == EventVersion::V1 && name.contains(':') {
            return refuse("the name must not contain a colon");
        }
        if payload.len() > MAX_PAYLOAD_BYTES {
            return refuse("the payload must have at most 65536 bytes");
        }
        self.log.measure(self.device.as_ref(), &RuntimeEvent::new(name, payload, version))
    }

    /// The runtime events so far.
    pub fn runtime_events(&self) -> Result<Vec<RuntimeEvent>, AttesterError> {
        self.log.events(self.device.as_ref())
    }

    /// Boot and runtime events, with digests.
    pub fn event_log(&self) -> Result<Vec<Event>, AttesterError> {
        let mut events = self.device.boot_events()?;
        events.extend(self.runtime_events()?.iter().map(RuntimeEvent::to_event));
        Ok(events)
    }

    /// A quote over `report_data` with the log of the same moment.
    ///
    /// `config`: text of `.sys-config.json`, carried along in the envelope. An event measured between log and quote makes them differ;
    /// then both are taken again.
    pub fn quote(&self, report_data: &ReportData, config: &str) -> Result<Quoted, AttesterError> {
        let mut runtime_events = self.runtime_events()?;
        loop {
            let quote = self.device.quote(report_data)?;
            let now = self.runtime_events()?;
            if now == runtime_events {
                return self.assemble(quote, runtime_events, report_data, config);
            }
            runtime_events = now;
        }
    }

    fn assemble(
        &self,
        quote: Vec<u8>,
        runtime_events: Vec<RuntimeEvent>,
        report_data: &ReportData,
        config: &str,
    ) -> Result<Quoted, AttesterError> {
        let mut events = self.device.boot_events()?;
        events.extend(runtime_events.iter().map(RuntimeEvent::to_event));
        let event_log = serde_json::to_string(&events).map_err(|error| AttesterError::Answer { what: error.to_string() })?;
        let attestation =
            Attestation { quote: quote.clone(), event_log: events, runtime_events, report_data: *report_data, config: config.to_owned() };
        Ok(Quoted { quote, event_log, report_data: *report_data, attestation })
    }
}
