//! Editing the file: first the plan that says what would change, then the save. Comments and order survive.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
};

use dstack_api::UserFacing;
use dstack_manifest::{AppId, ComposeHash, OsImageHash};
use dstack_service::fs::write_atomic;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};

use crate::{AllowList, AllowListError, Devices, allow_list::read_limited};

/// One wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Allow an OS image.
    AllowOsImage {
        /// Its hash.
        hash: OsImageHash,
        /// For people; written only when the image is new.
        note: String,
    },
    /// Take an OS image off the list.
    RevokeOsImage {
        /// Its hash.
        hash: OsImageHash,
    },
    /// Allow one document of an app. An app that is listed already keeps its machines.
    AllowApp {
        /// The app.
        app_id: AppId,
        /// Its document.
        compose_hash: ComposeHash,
        /// Machines, for an app that is new.
        devices: Devices,
        /// For people; written only when the app is new.
        note: String,
    },
    /// Take one document off an app's list.
    RevokeComposeHash {
        /// The app.
        app_id: AppId,
        /// Its document.
        compose_hash: ComposeHash,
    },
    /// Take an app off the list.
    RevokeApp {
        /// The app.
        app_id: AppId,
    },
}

/// What saving a plan will do; its `Display` is one line for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The file will be created.
    CreateFile {
        /// Whether simulated evidence will be accepted.
        allow_simulated: bool,
    },
    /// An image will be allowed.
    OsImageAllowed(OsImageHash),
    /// An image will no longer be allowed.
    OsImageRevoked(OsImageHash),
    /// An app will be listed.
    AppAdded(AppId, Devices),
    /// An app will no longer be listed.
    AppRevoked(AppId),
    /// A document will be allowed.
    ComposeHashAllowed(AppId, ComposeHash),
    /// A document will no longer be allowed.
    ComposeHashRevoked(AppId, ComposeHash),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateFile { allow_simulated: true } => f.write_str("create the allow list; it accepts simulated evidence"),
            Self::CreateFile { allow_simulated: false } => f.write_str("create the allow list"),
            Self::OsImageAllowed(hash) => write!(f, "allow OS image {hash}"),
            Self::OsImageRevoked(hash) => write!(f, "revoke OS image {hash}"),
            Self::AppAdded(app_id, devices) => write!(f, "allow app {app_id} on {devices}"),
            Self::AppRevoked(app_id) => write!(f, "revoke app {app_id}"),
            Self::ComposeHashAllowed(app_id, hash) => write!(f, "allow compose hash {hash} for app {app_id}"),
            Self::ComposeHashRevoked(app_id, hash) => write!(f, "revoke compose hash {hash} of app {app_id}"),
        }
    }
}

/// Why an edit is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The file as it is, or as it would become, is not usable.
    #[error(transparent)]
    List(#[from] AllowListError),
    /// Somebody else changed the file between plan and save.
    #[error("{} changed since the plan was made", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Writing.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl UserFacing for EditError {
    fn code(&self) -> &'static str {
        match self {
            Self::List(error) => error.code(),
            Self::Changed { .. } => "authorization/allow-list-changed",
            Self::Write { .. } => "authorization/allow-list-not-writable",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::List(error) => error.fix(),
            Self::Changed { .. } => "repeat the command; it will show what changes now".into(),
            Self::Write { path, .. } => format!("check space and permissions of {}", path.display()),
        }
    }
}

/// The allow list file of a KMS, for those who edit it.
#[derive(Debug, Clone)]
pub struct AllowListFile {
    path: PathBuf,
}

impl AllowListFile {
    /// Names the file; nothing is read yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Plans a first list that allows nothing; an empty plan if the file is there already.
    ///
    /// `allow_simulated`: accept evidence of a software TEE, for local test systems.
    pub fn plan_create(&self, allow_simulated: bool) -> Plan {
        let mut text = String::from(
            "# Who gets keys. What is not listed here is denied; the KMS follows changes of this file at once.\nversion = 1\n",
        );
        if allow_simulated {
            text.push_str(
                "\n[danger]\n# Evidence of a software TEE is accepted: keys are not protected by hardware.\nallow_simulated = true\n",
            );
        }
        let changes = if self.path.exists() { Vec::new() } else { vec![Change::CreateFile { allow_simulated }] };
        Plan { path: self.path.clone(), before: None, after: text, changes }
    }

    /// Plans `edits` against the file as it is now. What is so already does not appear among the changes.
    ///
    /// Errors: the file is missing, unreadable or invalid.
    pub fn plan(&self, edits: &[Edit]) -> Result<Plan, EditError> {
        let before = read_limited(&self.path)?;
        let list = AllowList::parse(&before, &self.path)?;
        let invalid = |reason: String| AllowListError::Invalid { path: self.path.clone(), line: 1, reason };
        let mut document: DocumentMut = before.parse().map_err(|error: toml_edit::TomlError| invalid(error.message().to_owned()))?;
        let mut changes = Vec::new();
        for edit in edits {
            apply(edit, &mut document, &mut changes)
                .map_err(|NotTables(key)| invalid(format!("{key} must be written as [[{key}]] tables to be edited")))?;
        }
        let after = if changes.is_empty() { before.clone() } else { document.to_string() };
        if !changes.is_empty() {
            let planned = AllowList::parse(&after, &self.path)?;
            debug_assert!(planned != list, "changes change the list");
        }
        Ok(Plan { path: self.path.clone(), before: Some(before), after, changes })
    }

    /// Plans to allow one document of an app on any device.
    ///
    /// Errors: as [`Self::plan`].
    pub fn allow_app(&self, app_id: AppId, compose_hash: ComposeHash, note: &str) -> Result<Plan, EditError> {
        self.plan(&[Edit::AllowApp { app_id, compose_hash, devices: Devices::Any, note: note.to_owned() }])
    }

    /// Plans to allow an OS image.
    ///
    /// Errors: as [`Self::plan`].
    pub fn allow_os_image(&self, hash: OsImageHash, note: &str) -> Result<Plan, EditError> {
        self.plan(&[Edit::AllowOsImage { hash, note: note.to_owned() }])
    }
}

/// Changes that were computed and not made.
#[derive(Debug)]
#[must_use = "a plan changes nothing until it is saved"]
pub struct Plan {
    path: PathBuf,
    before: Option<String>,
    after: String,
    changes: Vec<Change>,
}

impl Plan {
    /// What saving will do, in order; empty if nothing.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The file's text after saving.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.after
    }

    /// Makes the changes, all or none. Two savers exclude each other by a lock on the directory.
    ///
    /// Errors: the file changed since the plan, or cannot be written.
    pub fn save(self) -> Result<(), EditError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let write_error = |source| EditError::Write { path: self.path.clone(), source };
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let lock = File::open(directory).map_err(write_error)?;
        lock.lock().map_err(write_error)?;
        let now = match fs::read_to_string(&self.path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(write_error(error)),
        };
        if now != self.before {
            return Err(EditError::Changed { path: self.path.clone() });
        }
        write_atomic(&self.path, self.after.as_bytes(), 0o644).map_err(write_error)
    }
}

/// A key that exists in another TOML form than the one this module writes.
struct NotTables(&'static str);

fn apply(edit: &Edit, document: &mut DocumentMut, changes: &mut Vec<Change>) -> Result<(), NotTables> {
    match edit {
        Edit::AllowOsImage { hash, note } => {
            let images = tables(document, "os_images")?;
            if position(images, "hash", &hash.to_string()).is_none() {
                images.push(entry("hash", &hash.to_string(), note));
                changes.push(Change::OsImageAllowed(*hash));
            }
        }
        Edit::RevokeOsImage { hash } => {
            if remove(document, "os_images", "hash", &hash.to_string())? {
                changes.push(Change::OsImageRevoked(*hash));
            }
        }
        Edit::AllowApp { app_id, compose_hash, devices, note } => {
            let apps = tables(document, "apps")?;
            if position(apps, "app_id", &app_id.to_string()).is_none() {
                apps.push(app_entry(app_id, devices, note));
                changes.push(Change::AppAdded(*app_id, devices.clone()));
            }
            if edit_compose_hashes(apps, app_id, |hashes| allow_hash(hashes, compose_hash)) {
                changes.push(Change::ComposeHashAllowed(*app_id, *compose_hash));
            }
        }
        Edit::RevokeComposeHash { app_id, compose_hash } => {
            let apps = tables(document, "apps")?;
            if edit_compose_hashes(apps, app_id, |hashes| revoke_hash(hashes, compose_hash)) {
                changes.push(Change::ComposeHashRevoked(*app_id, *compose_hash));
            }
        }
        Edit::RevokeApp { app_id } => {
            if remove(document, "apps", "app_id", &app_id.to_string())? {
                changes.push(Change::AppRevoked(*app_id));
            }
        }
    }
    Ok(())
}

fn tables<'a>(document: &'a mut DocumentMut, key: &'static str) -> Result<&'a mut ArrayOfTables, NotTables> {
    let item = document.entry(key).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    item.as_array_of_tables_mut().ok_or(NotTables(key))
}

/// Index of the entry whose `field` is `wanted`; the file may write hex in either case and with `0x`.
fn position(tables: &ArrayOfTables, field: &str, wanted: &str) -> Option<usize> {
    tables.iter().position(|table| table.get(field).and_then(Item::as_str).is_some_and(|text| same_hex(text, wanted)))
}

fn same_hex(written: &str, wanted: &str) -> bool {
    written.strip_prefix("0x").unwrap_or(written).eq_ignore_ascii_case(wanted)
}

fn remove(document: &mut DocumentMut, key: &'static str, field: &str, wanted: &str) -> Result<bool, NotTables> {
    let tables = tables(document, key)?;
    let found = position(tables, field, wanted);
    if let Some(index) = found {
        tables.remove(index);
    }
    Ok(found.is_some())
}

fn entry(field: &str, text: &str, note: &str) -> Table {
    let mut table = Table::new();
    table.insert(field, value(text));
    if !note.is_empty() {
        table.insert("note", value(note));
    }
    table
}

fn app_entry(app_id: &AppId, devices: &Devices, note: &str) -> Table {
    let mut table = entry("app_id", &app_id.to_string(), note);
    match devices {
        Devices::Any => table.insert("any_device", value(true)),
        Devices::Only(ids) => table.insert("devices", value(ids.iter().map(ToString::to_string).collect::<Array>())),
    };
    table.insert("compose_hashes", value(Array::new()));
    table
}

fn edit_compose_hashes(apps: &mut ArrayOfTables, app_id: &AppId, change: impl FnOnce(&mut Array) -> bool) -> bool {
    let index = position(apps, "app_id", &app_id.to_string());
    let app = index.and_then(|index| apps.get_mut(index));
    app.and_then(|app| app.get_mut("compose_hashes")).and_then(Item::as_array_mut).is_some_and(change)
}

fn find_hash(hashes: &Array, compose_hash: &ComposeHash) -> Option<usize> {
    let wanted = compose_hash.to_string();
    hashes.iter().position(|hash| hash.as_str().is_some_and(|text| same_hex(text, &wanted)))
}

fn allow_hash(hashes: &mut Array, compose_hash: &ComposeHash) -> bool {
    if find_hash(hashes, compose_hash).is_some() {
        return false;
    }
    hashes.push_formatted(Value::from(compose_hash.to_string()).decorated("\n    ", ""));
    hashes.set_trailing("\n");
    hashes.set_trailing_comma(true);
    true
}

fn revoke_hash(hashes: &mut Array, compose_hash: &ComposeHash) -> bool {
    let found = find_hash(hashes, compose_hash);
    if let Some(index) = found {
        hashes.remove(index);
    }
    found.is_some()
}

#[cfg(test)]
mod tests;
