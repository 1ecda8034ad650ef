//! Intel TDX: quotes through configfs-tsm, RTMR3 through sysfs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use dstack_attestation::ReportData;
use dstack_event_log::{Digest384, Event};

use crate::{AttesterError, TeeDevice};

/// Attempts when another process changes the request between write and read.
const ATTEMPTS: u32 = 5;
const PROVIDER: &str = "tdx_guest";

/// Where the kernel's interfaces are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxPaths {
    /// Directory of the TSM report interface.
    pub tsm_report: PathBuf,
    /// Register file; reading gives its value, writing a digest extends it.
    pub rtmr3: PathBuf,
    /// Device file whose presence tells a TD.
    pub device: PathBuf,
}

impl Default for TdxPaths {
    fn default() -> Self {
        Self {
            tsm_report: "/sys/kernel/config/tsm/report".into(),
            rtmr3: "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384".into(),
            device: "/dev/tdx_guest".into(),
        }
    }
}

/// The TD this program runs in.
#[derive(Debug)]
pub struct TdxDevice {
    paths: TdxPaths,
    counter: AtomicU64,
}

impl TdxDevice {
    /// The device, if this machine is a TD.
    #[must_use]
    pub fn detect(paths: TdxPaths) -> Option<Self> {
        (paths.device.exists() || paths.rtmr3.exists()).then(|| Self { paths, counter: AtomicU64::new(0) })
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttesterError {
    move |source| AttesterError::Device { operation, path: path.to_owned(), source }
}

/// A request directory that goes away with this value.
struct Request {
    path: PathBuf,
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

impl Request {
    fn read(&self, attribute: &str) -> Result<Vec<u8>, AttesterError> {
        let path = self.path.join(attribute);
        fs::read(&path).map_err(failed("reading", &path))
    }

    fn text(&self, attribute: &str) -> Result<String, AttesterError> {
        Ok(String::from_utf8_lossy(&self.read(attribute)?).trim().to_owned())
    }
}

impl TeeDevice for TdxDevice {
    fn name(&self) -> &'static str {
        "tdx"
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, AttesterError> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let path = self.paths.tsm_report.join(format!("dstack-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(failed("creating", &path))?;
        let request = Request { path };
        let provider = request.text("provider")?;
        if provider != PROVIDER {
            return Err(AttesterError::Answer { what: format!("as provider {provider:?}, expected {PROVIDER:?}") });
        }
        for _ in 0..ATTEMPTS {
            let inblob = request.path.join("inblob");
            fs::write(&inblob, report_data).map_err(failed("writing", &inblob))?;
            let before = request.text("generation")?;
            let quote = request.read("outblob")?;
            if request.text("generation")? == before {
                return if quote.is_empty() { Err(AttesterError::Answer { what: "an empty quote".into() }) } else { Ok(quote) };
            }
        }
        Err(AttesterError::Answer { what: "quotes over data of another process".into() })
    }

    fn rtmr3(&self) -> Result<Digest384, AttesterError> {
        let value = fs::read(&self.paths.rtmr3).map_err(failed("reading", &self.paths.rtmr3))?;
        value.as_slice().try_into().map_err(|_| AttesterError::Answer { what: format!("{} bytes for RTMR3, expected 48", value.len()) })
    }

    fn extend_rtmr3(&self, digest: &Digest384) -> Result<(), AttesterError> {
        use std::io::Write as _;
        let path = &self.paths.rtmr3;
        // One write of 48 bytes is one extension; the file must not be truncated or created.
        let mut file = fs::OpenOptions::new().write(true).open(path).map_err(failed("opening", path))?;
        file.write_all(digest).map_err(failed("extending", path))
    }

    fn boot_events(&self) -> Result<Vec<Event>, AttesterError> {
        // The firmware's log (CCEL) is binary and not parsed in this release; verifiers compute RTMR0 to RTMR2 from the OS image.
        Ok(Vec::new())
    }
}
