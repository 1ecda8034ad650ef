//! VMs and their configuration revisions.

use dstack_api::vmm::VmConfiguration;
use dstack_service::clock::unix_millis;
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{
    Database, Limits, PortReservation,
    reservations::{check_capacity, free_cid, take_ports},
};
use crate::VmmError;

/// A VM that is about to exist.
#[derive(Debug)]
pub(crate) struct NewVm<'a> {
    pub(crate) id: &'a str,
    pub(crate) app_id: &'a str,
    pub(crate) compose_hash: &'a str,
    pub(crate) image_version: &'a str,
    pub(crate) configuration: &'a VmConfiguration,
    pub(crate) ports: &'a [PortReservation],
}

/// A VM without its configuration, which can be large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmRow {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) app_id: String,
    pub(crate) image: String,
    pub(crate) image_version: String,
    pub(crate) cid: u32,
    pub(crate) created_at_ms: u64,
    /// Wanted to run.
    pub(crate) started: bool,
    pub(crate) removing: bool,
    /// Its creation has not come to its end; it is not shown, and a restart undoes it.
    pub(crate) creating: bool,
    pub(crate) started_at_ms: u64,
    /// 0 while it runs or never ran.
    pub(crate) ended_at_ms: u64,
    pub(crate) end_reason: String,
    pub(crate) boot_progress: String,
    pub(crate) boot_error: String,
    pub(crate) shutdown_progress: String,
    /// The guest's `.instance_info`, or empty.
    pub(crate) instance_info: String,
}

const COLUMNS: &str = "id, name, app_id, image, image_version, cid, created_at_ms, started, removing, creating, started_at_ms, ended_at_ms, end_reason, \
                       boot_progress, boot_error, shutdown_progress, instance_info";

fn vm_row(row: &Row<'_>) -> rusqlite::Result<VmRow> {
    Ok(VmRow {
        id: row.get(0)?,
        name: row.get(1)?,
        app_id: row.get(2)?,
        image: row.get(3)?,
        image_version: row.get(4)?,
        cid: row.get(5)?,
        created_at_ms: row.get(6)?,
        started: row.get(7)?,
        removing: row.get(8)?,
        creating: row.get(9)?,
        started_at_ms: row.get(10)?,
        ended_at_ms: row.get(11)?,
        end_reason: row.get(12)?,
        boot_progress: row.get(13)?,
        boot_error: row.get(14)?,
        shutdown_progress: row.get(15)?,
        instance_info: row.get(16)?,
    })
}

impl Database {
    /// Adds a VM with its reservations, all or nothing. Returns its CID.
    ///
    /// Errors: no CID, a port is taken, or, for a VM that is to start, not enough left.
    pub(crate) fn insert_vm(&self, new: &NewVm<'_>, limits: &Limits) -> Result<u32, VmmError> {
        self.write(|transaction| {
            let configuration = new.configuration;
            if !configuration.stopped {
                check_capacity(transaction, new.id, configuration.vcpu, configuration.memory, limits)?;
            }
            let cid = free_cid(transaction, limits)?;
            transaction.execute(
                "INSERT INTO vm (id, name, app_id, compose_hash, image, image_version, revision, cid, vcpu, memory_mib, created_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8, ?9, ?10)",
                params![
                    new.id,
                    configuration.name,
                    new.app_id,
                    new.compose_hash,
                    configuration.image,
                    new.image_version,
                    cid,
                    configuration.vcpu,
                    configuration.memory,
                    unix_millis()
                ],
            )?;
            transaction.execute(
                "INSERT INTO revision (vm_id, number, created_at_ms, configuration) VALUES (?1, 1, ?2, ?3)",
                params![new.id, unix_millis(), configuration.encode_to_vec()],
            )?;
            take_ports(transaction, new.id, new.ports)?;
            Ok(cid)
        })
    }

    /// One VM.
    pub(crate) fn vm(&self, id: &str) -> Result<Option<VmRow>, VmmError> {
        self.read(|connection| connection.query_row(&format!("SELECT {COLUMNS} FROM vm WHERE id = ?1"), [id], vm_row).optional())
    }

    /// All VMs, oldest first.
    pub(crate) fn vms(&self) -> Result<Vec<VmRow>, VmmError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM vm ORDER BY created_at_ms, id"))?;
            statement.query_map([], vm_row)?.collect()
        })
    }

    /// The VM with this CID.
    pub(crate) fn vm_by_cid(&self, cid: u32) -> Result<Option<VmRow>, VmmError> {
        self.read(|connection| connection.query_row(&format!("SELECT {COLUMNS} FROM vm WHERE cid = ?1"), [cid], vm_row).optional())
    }

    /// The current configuration of a VM.
    pub(crate) fn configuration(&self, id: &str) -> Result<Option<VmConfiguration>, VmmError> {
        let bytes: Option<Vec<u8>> = self.read(|connection| {
            connection
                .query_row(
                    "SELECT configuration FROM revision JOIN vm ON vm.id = vm_id AND number = vm.revision WHERE vm.id = ?1",
                    [id],
                    |row| row.get(0),
                )
                .optional()
        })?;
        bytes
            .map(|bytes| {
                VmConfiguration::decode(bytes.as_slice()).map_err(|error| VmmError::Internal(format!("configuration of {id}: {error}")))
            })
            .transpose()
    }

    /// Marks a VM as started after checking that it fits, and clears what its last run left.
    ///
    /// Errors: not enough left.
    pub(crate) fn begin_run(&self, id: &str, limits: &Limits) -> Result<(), VmmError> {
        self.write(|transaction| {
            let (vcpus, memory) = transaction.query_row("SELECT vcpu, memory_mib FROM vm WHERE id = ?1", [id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            check_capacity(transaction, id, vcpus, memory, limits)?;
            transaction.execute(
                "UPDATE vm SET started = 1, started_at_ms = ?2, ended_at_ms = 0, end_reason = '', boot_progress = 'booting', boot_error = '',
                 shutdown_progress = '' WHERE id = ?1",
                params![id, unix_millis()],
            )?;
            transaction.execute("DELETE FROM event WHERE vm_id = ?1", [id])?;
            Ok(())
        })
    }

    /// Whether the VM is wanted to run.
    pub(crate) fn set_started(&self, id: &str, started: bool) -> Result<(), VmmError> {
        self.set(id, "started = ?2", &started)
    }

    /// The VM is there to stay.
    pub(crate) fn finish_creation(&self, id: &str) -> Result<(), VmmError> {
        self.set(id, "creating = ?2", &false)
    }

    /// Marks a VM as being removed; it stays so until its row is deleted.
    pub(crate) fn set_removing(&self, id: &str) -> Result<(), VmmError> {
        self.set(id, "removing = ?2, started = 0", &true)
    }

    /// The run has ended. Keeps an earlier boot error.
    pub(crate) fn end_run(&self, id: &str, reason: &str, boot_error: &str) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE vm SET ended_at_ms = ?2, end_reason = ?3, boot_error = CASE WHEN boot_error = '' THEN ?4 ELSE boot_error END
                 WHERE id = ?1 AND ended_at_ms = 0",
                params![id, unix_millis(), reason, boot_error],
            )?;
            Ok(())
        })
    }

    /// Where the boot is.
    pub(crate) fn set_boot_progress(&self, id: &str, text: &str) -> Result<(), VmmError> {
        self.set(id, "boot_progress = ?2", &text)
    }

    /// Why the boot did not go on.
    pub(crate) fn set_boot_error(&self, id: &str, text: &str) -> Result<(), VmmError> {
        self.set(id, "boot_error = ?2", &text)
    }

    /// Where the shutdown is.
    pub(crate) fn set_shutdown_progress(&self, id: &str, text: &str) -> Result<(), VmmError> {
        self.set(id, "shutdown_progress = ?2", &text)
    }

    /// The document that names the instance.
    pub(crate) fn set_instance_info(&self, id: &str, text: &str) -> Result<(), VmmError> {
        self.set(id, "instance_info = ?2", &text)
    }

    /// Forgets a VM and frees everything it held.
    pub(crate) fn delete_vm(&self, id: &str) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM vm WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    fn set(&self, id: &str, assignment: &'static str, value: &dyn rusqlite::ToSql) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute(&format!("UPDATE vm SET {assignment} WHERE id = ?1"), params![id, value])?;
            Ok(())
        })
    }
}
