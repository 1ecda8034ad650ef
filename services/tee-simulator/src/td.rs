//! The TDs and their registers, on disk.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use dstack_api::tee_simulator::{LaunchTd, TdState};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{SimulatorError, launch::Launched};

/// MRTD and RTMR0 to RTMR3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// 48 bytes.
    #[serde(with = "hex::serde")]
    pub mrtd: [u8; 48],
    /// 48 bytes each.
    #[serde(with = "hex_registers")]
    pub rtmr: [[u8; 48]; 4],
}

mod hex_registers {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(registers: &[[u8; 48]; 4], serializer: S) -> Result<S::Ok, S::Error> {
        registers.map(hex::encode).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[[u8; 48]; 4], D::Error> {
        let mut registers = [[0; 48]; 4];
        for (register, text) in registers.iter_mut().zip(<[String; 4]>::deserialize(deserializer)?) {
            hex::decode_to_slice(text, register).map_err(D::Error::custom)?;
        }
        Ok(registers)
    }
}

/// One TD as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TdRecord {
    /// As it was launched.
    pub launch: LaunchTd,
    /// Present values.
    pub registers: Registers,
    /// JSON of the boot events.
    pub boot_event_log: String,
}

impl TdRecord {
    /// A TD that just started.
    #[must_use]
    pub(crate) fn started(launch: LaunchTd, launched: Launched) -> Self {
        Self { launch, registers: launched.registers, boot_event_log: launched.boot_event_log }
    }

    /// 48 bytes; checked at launch.
    #[must_use]
    pub fn mr_config_id(&self) -> [u8; 48] {
        self.launch.mr_config_id.as_slice().try_into().unwrap_or([0; 48])
    }

    /// The form on the wire.
    #[must_use]
    pub fn state(&self) -> TdState {
        TdState {
            mrtd: self.registers.mrtd.to_vec(),
            rtmr: self.registers.rtmr.iter().map(|value| value.to_vec()).collect(),
            mr_config_id: self.launch.mr_config_id.clone(),
            boot_event_log: self.boot_event_log.clone(),
        }
    }
}

/// All TDs, one file each, written whole before a change is answered.
#[derive(Debug)]
pub struct TdStore {
    directory: PathBuf,
    records: Mutex<BTreeMap<String, TdRecord>>,
}

impl TdStore {
    /// Reads the TDs of an earlier run. A file that cannot be read stays, is reported, and its TD is unknown.
    pub fn open(directory: &Path) -> Result<Self, SimulatorError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("creating", directory))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(failed("listing", directory))? {
            let path = entry.map_err(failed("listing", directory))?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).filter(|id| is_vm_id(id));
            let (Some(id), Some("json")) = (id, path.extension().and_then(|extension| extension.to_str())) else { continue };
            match read_record(&path) {
                Ok(record) => drop(records.insert(id.to_owned(), record)),
                Err(error) => tracing::error!(vm_id = id, %error, "state of a TD is lost"),
            }
        }
        Ok(Self { directory: directory.to_owned(), records: Mutex::new(records) })
    }

    /// Ids and records.
    pub async fn all(&self) -> Vec<(String, TdRecord)> {
        self.records.lock().await.iter().map(|(id, record)| (id.clone(), record.clone())).collect()
    }

    /// One TD.
    pub async fn get(&self, vm_id: &str) -> Result<TdRecord, SimulatorError> {
        self.records.lock().await.get(vm_id).cloned().ok_or_else(|| SimulatorError::NoSuchTd { vm_id: vm_id.to_owned() })
    }

    /// Starts a TD anew, replacing one of the same id.
    pub async fn put(&self, vm_id: &str, record: TdRecord) -> Result<(), SimulatorError> {
        if !is_vm_id(vm_id) {
            return Err(SimulatorError::VmId);
        }
        let mut records = self.records.lock().await;
        self.write(vm_id, &record)?;
        records.insert(vm_id.to_owned(), record);
        Ok(())
    }

    /// Ends a TD.
    pub async fn remove(&self, vm_id: &str) -> Result<(), SimulatorError> {
        let mut records = self.records.lock().await;
        if records.remove(vm_id).is_none() {
            return Err(SimulatorError::NoSuchTd { vm_id: vm_id.to_owned() });
        }
        let path = self.path(vm_id);
        fs::remove_file(&path).map_err(failed("removing", &path))
    }

    /// Extends a register; on disk when this returns.
    pub async fn extend(&self, vm_id: &str, index: u8, digest: &[u8; 48]) -> Result<TdRecord, SimulatorError> {
        let mut records = self.records.lock().await;
        let record = records.get_mut(vm_id).ok_or_else(|| SimulatorError::NoSuchTd { vm_id: vm_id.to_owned() })?;
        let mut changed = record.clone();
        let [_, _, rtmr2, rtmr3] = &mut changed.registers.rtmr;
        let register = match index {
            2 => rtmr2,
            3 => rtmr3,
            _ => return Err(SimulatorError::Field { field: "index", expected: "2 or 3" }),
        };
        *register = dstack_event_log::extend(register, digest);
        self.write(vm_id, &changed)?;
        *record = changed.clone();
        Ok(changed)
    }

    fn write(&self, vm_id: &str, record: &TdRecord) -> Result<(), SimulatorError> {
        let path = self.path(vm_id);
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|error| SimulatorError::StateMalformed { path: path.clone(), reason: error.to_string() })?;
        dstack_service::fs::write_atomic(&path, &bytes, 0o600).map_err(failed("writing", &path))
    }

    fn path(&self, vm_id: &str) -> PathBuf {
        self.directory.join(format!("{vm_id}.json"))
    }
}

/// 1 to 64 letters, digits, dashes and underscores.
pub(crate) fn is_vm_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn read_record(path: &Path) -> Result<TdRecord, SimulatorError> {
    let bytes = fs::read(path).map_err(failed("reading", path))?;
    serde_json::from_slice(&bytes).map_err(|error| SimulatorError::StateMalformed { path: path.to_owned(), reason: error.to_string() })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SimulatorError {
    move |source| SimulatorError::State { operation, path: path.to_owned(), source }
}
