//! Who holds which CID, host port, vCPU and MiB.

use rusqlite::{OptionalExtension as _, Transaction, params};

use crate::VmmError;

/// What the node gives to VMs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) cid_start: u32,
    pub(crate) cid_pool_size: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortReservation {
    pub(crate) protocol: String,
    pub(crate) address: String,
    pub(crate) host_port: u16,
}

const WILDCARD: &str = "0.0.0.0";

/// The lowest free CID.
pub(super) fn free_cid(transaction: &Transaction<'_>, limits: &Limits) -> Result<u32, VmmError> {
    let mut taken = transaction.prepare_cached("SELECT cid FROM vm WHERE cid >= ?1 ORDER BY cid")?;
    let taken = taken.query_map([limits.cid_start], |row| row.get::<_, u32>(0))?;
    let mut candidate = limits.cid_start;
    for cid in taken {
        if cid? > candidate {
            break;
        }
        candidate += 1;
    }
    if candidate - limits.cid_start >= limits.cid_pool_size {
        return Err(VmmError::NoCid(limits.cid_pool_size));
    }
    Ok(candidate)
}

/// Takes the ports for a VM; a wildcard address conflicts with any.
pub(super) fn take_ports(transaction: &Transaction<'_>, vm_id: &str, ports: &[PortReservation]) -> Result<(), VmmError> {
    for port in ports {
        let holder: Option<String> = transaction
            .query_row(
                "SELECT vm.name || ' (' || vm.id || ')' FROM port JOIN vm ON vm.id = port.vm_id
                 WHERE protocol = ?1 AND host_port = ?2 AND (address = ?3 OR address = ?4 OR ?3 = ?4)",
                params![port.protocol, port.host_port, port.address, WILDCARD],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(holder) = holder {
            return Err(VmmError::PortInUse {
                protocol: port.protocol.clone(),
                address: port.address.clone(),
                port: port.host_port,
                holder: format!("VM {holder}"),
            });
        }
        transaction.execute(
            "INSERT INTO port (protocol, address, host_port, vm_id) VALUES (?1, ?2, ?3, ?4)",
            params![port.protocol, port.address, port.host_port, vm_id],
        )?;
    }
    Ok(())
}

/// Whether a VM of this size fits beside the started ones.
pub(super) fn check_capacity(
    transaction: &Transaction<'_>,
    vm_id: &str,
    vcpus: u32,
    memory_mib: u32,
    limits: &Limits,
) -> Result<(), VmmError> {
    let (used_vcpus, used_memory): (u64, u64) = transaction.query_row(
        "SELECT coalesce(sum(vcpu), 0), coalesce(sum(memory_mib), 0) FROM vm WHERE started = 1 AND id <> ?1",
        [vm_id],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let resources = [
        ("MiB of memory", u64::from(memory_mib), used_memory, u64::from(limits.memory_mib)),
        ("vCPUs", u64::from(vcpus), used_vcpus, u64::from(limits.vcpus)),
    ];
    for (unit, asked, used, total) in resources {
        let left = total.saturating_sub(used);
        if asked > left {
            return Err(VmmError::NotEnough { unit, asked, left, total });
        }
    }
    Ok(())
}
