#![allow(clippy::unwrap_used, reason = "tests")]

use dstack_api::vmm::VmConfiguration;

use super::*;

const LIMITS: Limits = Limits { cid_start: 10, cid_pool_size: 2, vcpus: 4, memory_mib: 4096 };

fn open() -> (tempfile::TempDir, Database) {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::open(&directory.path().join("vmm.db")).unwrap();
    (directory, database)
}

fn add(database: &Database, id: &str, ports: &[PortReservation]) -> Result<u32, VmmError> {
    let configuration = VmConfiguration { name: id.to_owned(), vcpu: 2, memory: 2048, ..VmConfiguration::default() };
    let new = NewVm { id, app_id: "", compose_hash: "", image_version: "", configuration: &configuration, ports };
    database.insert_vm(&new, &LIMITS)
}

fn port(address: &str, host_port: u16) -> PortReservation {
    PortReservation { protocol: "tcp".to_owned(), address: address.to_owned(), host_port }
}

fn code(error: &VmmError) -> &'static str {
    dstack_api::UserFacing::code(error)
}

#[test]
fn cids_are_the_lowest_free_ones_and_run_out() {
    let (_directory, database) = open();
    assert_eq!(add(&database, "a", &[]).unwrap(), 10);
    assert_eq!(add(&database, "b", &[]).unwrap(), 11);

    assert_eq!(code(&add(&database, "c", &[]).unwrap_err()), "vmm/no-cid");
    database.delete_vm("a").unwrap();

    assert_eq!(add(&database, "c", &[]).unwrap(), 10);
}

#[test]
fn a_taken_port_refuses_the_whole_vm() {
    let (_directory, database) = open();
    add(&database, "a", &[port("127.0.0.1", 80)]).unwrap();

    for address in ["127.0.0.1", "0.0.0.0"] {
        let error = add(&database, "b", &[port("127.0.0.1", 81), port(address, 80)]).unwrap_err();
        assert_eq!(code(&error), "vmm/port-in-use");
        assert!(error.to_string().contains("VM a (a)"), "{error}");
    }
    assert!(database.vm("b").unwrap().is_none());
    add(&database, "b", &[port("127.0.0.1", 81)]).unwrap();
    database.delete_vm("a").unwrap();
    database.delete_vm("b").unwrap();
    add(&database, "c", &[port("0.0.0.0", 80)]).unwrap();
}

#[test]
fn started_vms_fill_the_node_and_stopped_ones_do_not() {
    let (_directory, database) = open();
    add(&database, "a", &[]).unwrap();
    database.begin_run("a", &LIMITS).unwrap();
    database.begin_run("a", &LIMITS).unwrap();
    add(&database, "b", &[]).unwrap();
    database.begin_run("b", &LIMITS).unwrap();
    let small = Limits { memory_mib: 3000, ..LIMITS };

    let error = database.begin_run("b", &small).unwrap_err();
    assert_eq!(error.to_string(), "2048 MiB of memory asked, 952 of 3000 MiB of memory left for VMs on this node");
    database.set_started("a", false).unwrap();
    database.begin_run("b", &small).unwrap();
}

#[test]
fn events_are_a_ring() {
    let (_directory, database) = open();
    add(&database, "a", &[]).unwrap();

    for number in 0..5 {
        database.add_event("a", "boot.progress", &number.to_string(), 3).unwrap();
    }

    let bodies: Vec<String> = database.events("a").unwrap().into_iter().map(|event| event.body).collect();
    assert_eq!(bodies, ["2", "3", "4"]);
}

#[test]
fn configuration_and_state_survive_reopening() {
    let (directory, database) = open();
    add(&database, "a", &[]).unwrap();
    database.set_boot_error("a", "first").unwrap();
    database.end_run("a", "killed", "second").unwrap();
    drop(database);

    let database = Database::open(&directory.path().join("vmm.db")).unwrap();
    let row = database.vm("a").unwrap().unwrap();
    assert_eq!((row.boot_error.as_str(), row.end_reason.as_str()), ("first", "killed"));
    assert_eq!(database.configuration("a").unwrap().unwrap().memory, 2048);
    assert_eq!(database.vm_by_cid(10).unwrap().unwrap().id, "a");
}

#[test]
fn a_newer_schema_is_refused() {
    let (directory, database) = open();
    database.connection.lock().unwrap().pragma_update(None, "user_version", 99).unwrap();
    drop(database);

    assert!(Database::open(&directory.path().join("vmm.db")).unwrap_err().to_string().contains("schema 99"));
}
