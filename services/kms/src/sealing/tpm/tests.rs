#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

use dstack_testkit::swtpm::Swtpm;

use super::*;

const PCRS: [u8; 3] = [0, 4, 14];

/// A machine with a TPM and a disk.
struct Machine {
    tpm: Swtpm,
    device: PathBuf,
    disk: tempfile::TempDir,
}

impl Machine {
    /// Started once, with the usual system.
    fn new() -> Self {
        let tpm = Swtpm::start();
        let machine = Self { device: tpm.socket(), tpm, disk: tempfile::tempdir().unwrap() };
        machine.measure(&PCRS, 1);
        machine
    }

    fn measure(&self, pcrs: &[u8], system: u8) {
        for pcr in pcrs {
            self.tpm.extend(*pcr, &[system; 32]);
        }
    }

    /// Starts the usual system again.
    fn reboot(&mut self) {
        self.tpm.reboot();
        self.measure(&PCRS, 1);
    }

    fn file(&self) -> PathBuf {
        self.disk.path().join("kms-tpm-key")
    }

    fn with(&self, pcrs: &[u8]) -> Tpm<'_> {
        let pcrs = Pcrs::new(PcrBank::Sha256, pcrs).unwrap();
        Tpm { device: &self.device, pcrs, file: self.file(), is_in_use: false }
    }

    fn key(&self) -> Result<Secret<32>, TpmKeyError> {
        self.with(&PCRS).load_or_make()
    }

    /// The sealed key, without what stands in front of it.
    fn object(&self) -> (PcrValues, SealedObject) {
        let bytes = fs::read(self.file()).unwrap();
        let (values, object) = PcrValues::decode(bytes.strip_prefix(MAGIC).unwrap()).unwrap();
        (values, SealedObject::decode(object).unwrap())
    }

    fn write(&self, values: &PcrValues, object: &SealedObject) {
        fs::write(self.file(), [MAGIC.as_slice(), &values.encode(), &object.encode().unwrap()].concat()).unwrap();
    }

    fn chip(&self) -> Chip {
        Chip::open(&self.device).unwrap()
    }
}

#[test]
fn the_same_system_gets_the_same_key_after_a_reboot() {
    let mut machine = Machine::new();
    let key = machine.key().unwrap();
    let file = fs::read(machine.file()).unwrap();

    machine.reboot();

    assert_eq!(machine.key().unwrap(), key);
    assert_eq!(fs::read(machine.file()).unwrap(), file);
    assert!(!file.windows(32).any(|window| window == key.expose()));
}

#[test]
fn a_change_of_any_register_is_refused_by_its_number() {
    let mut machine = Machine::new();
    machine.key().unwrap();

    for pcr in PCRS {
        machine.reboot();
        machine.measure(&[pcr], 2);

        let error = machine.key().unwrap_err();

        assert!(matches!(&error, TpmKeyError::Changed { changed } if changed == &[pcr]), "{error}");
        assert_eq!(error.code(), "kms/sealing-tpm-changed");
    }
    machine.reboot();
    machine.measure(&[1], 2);
    machine.key().expect("a register that was not named does not count");
}

#[test]
fn the_tpm_refuses_whatever_the_file_says_about_registers() {
    let machine = Machine::new();
    machine.key().unwrap();
    let (_, object) = machine.object();
    machine.measure(&[4], 2);
    let now = machine.chip().read(&Pcrs::new(PcrBank::Sha256, &PCRS).unwrap()).unwrap();

    machine.write(&now, &object);

    assert!(matches!(machine.key(), Err(TpmKeyError::Changed { changed }) if changed.is_empty()));
}

#[test]
fn another_tpm_is_refused() {
    let (one, other) = (Machine::new(), Machine::new());
    one.key().unwrap();

    fs::copy(one.file(), other.file()).unwrap();

    assert!(matches!(other.key(), Err(TpmKeyError::OtherTpm)));
    one.key().unwrap();
}

/// Another system on the machine knows the registers of the right one, and seals a key that it has chosen to them.
#[test]
fn a_key_that_another_system_planted_is_refused() {
    let mut machine = Machine::new();
    let right = machine.chip().read(&Pcrs::new(PcrBank::Sha256, &PCRS).unwrap()).unwrap();
    machine.measure(&[4], 2);
    let planted = machine.chip().seal(&[7; 32], &right).unwrap();
    machine.write(&right, &planted);

    machine.reboot();

    assert!(matches!(machine.key(), Err(TpmKeyError::Planted)));
    let mut claims = planted;
    claims.creation.inner.pcr_digest = right.digest().as_slice().try_into().unwrap();
    machine.write(&right, &claims);
    assert!(matches!(machine.key(), Err(TpmKeyError::Planted)), "the TPM knows what it made");
}

#[test]
fn without_a_measurement_there_is_no_key() {
    let mut machine = Machine::new();
    machine.tpm.reboot();

    assert!(matches!(machine.key(), Err(TpmKeyError::Untouched)));
    assert!(!machine.file().exists());
}

#[test]
fn a_file_that_is_gone_or_is_none_is_not_replaced() {
    let machine = Machine::new();
    let in_use = Tpm { is_in_use: true, ..machine.with(&PCRS) };
    assert!(matches!(in_use.load_or_make(), Err(TpmKeyError::Missing { .. })));
    assert!(!machine.file().exists());
    machine.key().unwrap();
    let whole = fs::read(machine.file()).unwrap();

    for length in [0, 7, 8, 9, 40, whole.len() - 1] {
        fs::write(machine.file(), &whole[..length]).unwrap();
        assert!(matches!(machine.key(), Err(TpmKeyError::Malformed { .. })), "{length} bytes");
    }
    fs::write(machine.file(), &whole).unwrap();
    in_use.load_or_make().unwrap();
}

#[test]
fn other_registers_than_at_the_first_start_are_refused() {
    let machine = Machine::new();
    machine.key().unwrap();

    assert!(matches!(machine.with(&[0, 4]).load_or_make(), Err(TpmKeyError::OtherPcrs { .. })));
}

#[test]
fn a_place_where_no_tpm_is_is_an_error() {
    let machine = Machine::new();
    let nowhere = machine.disk.path().join("tpm0");

    let error = Tpm { device: &nowhere, ..machine.with(&PCRS) }.load_or_make().unwrap_err();

    assert!(matches!(error, TpmKeyError::Open { .. }) && error.code() == "kms/sealing-tpm");
}
