//! A vendor, its collateral, an image server, and verifiers beside them.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs, reason = "tests panic on purpose; not every test uses everything")]

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse as _};
use dstack_api::{RpcError, verifier::VerifyResponse};
use dstack_attestation::{AcpiSource, DocumentReference, ImageReference as _, QuoteCollateral, bound_measurement};
use dstack_event_log::{Event, EventVersion, RuntimeEvent, replay};
use dstack_manifest::{ComposeHash, MeasurementDocument, OsImageHash, VmConfig, mr_config_id_v1};
use dstack_measurement::{
    VmShape,
    acpi::{self, AcpiProfile},
    checksum::{binding_line, os_image_hash},
    tdx::{ImageFiles, expected_from_files},
};
use dstack_rpc::{Client, Endpoint, Listener};
use dstack_tee_simulator::{CollateralSet, QuoteBody, QuotingEnclave, Vendor};
use dstack_verifier::{
    Server, Verification,
    config::{ConfigFile, Danger, Settings},
};
use http::StatusCode;

pub const ATTESTATION_DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/attestation/tests/testdata/");
pub const MEASUREMENT_DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/measurement/tests/testdata/");
/// When the collateral of the genuine evidence is valid.
pub const GENUINE_NOW: u64 = 1_782_215_784;
/// When simulated evidence is made.
pub const NOW: u64 = 1_790_000_000;

pub fn genuine(name: &str) -> String {
    std::fs::read_to_string(format!("{ATTESTATION_DATA}envelopes/{name}")).unwrap()
}

pub fn genuine_collateral() -> QuoteCollateral {
    let path = format!("{ATTESTATION_DATA}tdx/collateral/90c06f000000-tdx-platform-20260608-e19.json");
    QuoteCollateral::parse_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Answers over HTTP, and counts.
pub struct Web {
    pub address: String,
    requests: Arc<AtomicUsize>,
}

impl Web {
    pub async fn serve(answer: impl Fn(&str) -> axum::response::Response + Clone + Send + Sync + 'static) -> Self {
        let requests = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&requests);
        let handler = move |request: Request| {
            counter.fetch_add(1, Ordering::SeqCst);
            let response = answer(request.uri().path());
            async move { response }
        };
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(dstack_rpc::serve(listener, Router::new().fallback(handler), std::future::pending()));
        Self { address, requests }
    }

    /// A collateral service.
    pub async fn pccs(collateral: QuoteCollateral) -> Self {
        Self::serve(move |path| {
            let signed = |name: &str, text: &str, signature: &[u8]| {
                format!("{{\"{name}\":{text},\"signature\":\"{}\"}}", hex::encode(signature)).into_bytes()
            };
            let c = &collateral;
            let (header, chain, body) = match path {
                "/sgx/certification/v4/pckcrl" => ("sgx-pck-crl-issuer-chain", c.pck_crl_issuer_chain.as_str(), c.pck_crl.clone()),
                "/sgx/certification/v4/rootcacrl" => ("x-none", "", hex::encode(&c.root_ca_crl).into_bytes()),
                "/tdx/certification/v4/tcb" => {
                    ("tcb-info-issuer-chain", c.tcb_info_issuer_chain.as_str(), signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature))
                }
                "/tdx/certification/v4/qe/identity" => {
                    let body = signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature);
                    ("sgx-enclave-identity-issuer-chain", c.qe_identity_issuer_chain.as_str(), body)
                }
                _ => return StatusCode::NOT_FOUND.into_response(),
            };
            ([(header, chain.replace('%', "%25").replace('\n', "%0A").replace('\r', "%0D"))], body).into_response()
        })
        .await
    }

    pub async fn file(bytes: Option<Vec<u8>>) -> Self {
        Self::serve(move |_| bytes.clone().map_or_else(|| StatusCode::NOT_FOUND.into_response(), |bytes| Body::from(bytes).into_response()))
            .await
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn image_template(&self) -> String {
        format!("{}/mr_{{OS_IMAGE_HASH}}.tar.gz", self.address)
    }
}

/// A generated vendor.
pub struct Bed {
    pub vendor: Vendor,
    pub dir: tempfile::TempDir,
}

impl Bed {
    pub fn new() -> Self {
        Self::at(NOW)
    }

    pub fn at(now: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vendor = Vendor::generate(i64::try_from(now).unwrap()).unwrap();
        std::fs::write(dir.path().join("root.pem"), vendor.root_pem()).unwrap();
        Self { vendor, dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    pub fn collateral_at(&self, now: u64) -> QuoteCollateral {
        let set = CollateralSet::sign(&self.vendor, i64::try_from(now).unwrap()).unwrap();
        QuoteCollateral {
            pck_crl_issuer_chain: self.vendor.pck_ca_chain_pem(),
            root_ca_crl: set.root_crl,
            pck_crl: set.pck_crl,
            tcb_info_issuer_chain: self.vendor.tcb_chain_pem(),
            tcb_info: set.tcb_info.text,
            tcb_info_signature: set.tcb_info.signature.to_vec(),
            qe_identity_issuer_chain: self.vendor.tcb_chain_pem(),
            qe_identity: set.qe_identity.text,
            qe_identity_signature: set.qe_identity.signature.to_vec(),
            pck_certificate_chain: None,
        }
    }

    pub fn collateral(&self) -> QuoteCollateral {
        self.collateral_at(NOW)
    }

    /// Evidence of a TD that booted `image`, as a request.
    pub fn request(&self, image: &Image, report_data: [u8; 64]) -> serde_json::Value {
        self.request_with(image, report_data, |_| ())
    }

    pub fn request_with(&self, image: &Image, report_data: [u8; 64], change: impl FnOnce(&mut QuoteBody)) -> serde_json::Value {
        let (quote, events) = self.evidence(image, report_data, change);
        serde_json::json!({
            "quote": hex::encode(quote),
            "event_log": serde_json::to_string(&events).unwrap(),
            "vm_config": serde_json::to_string(&image.vm_config).unwrap(),
        })
    }

    pub fn evidence(&self, image: &Image, report_data: [u8; 64], change: impl FnOnce(&mut QuoteBody)) -> (Vec<u8>, Vec<Event>) {
        let compose_hash = ComposeHash::new([0xc0; 32]);
        let event = |name: &str, payload: &[u8]| RuntimeEvent::new(name, payload, EventVersion::V1).to_event();
        let events = vec![
            event("app-id", &[0xc0; 20]),
            event("compose-hash", compose_hash.as_bytes()),
            event("instance-id", &[9; 20]),
            event("boot-mr-done", b""),
            event("key-provider", br#"{"name":"kms","id":"aabb"}"#),
            event("system-ready", b""),
        ];
        let [.., rtmr3] = replay(&events).unwrap().0;
        let [rtmr0, rtmr1, rtmr2] = image.rtmr;
        let mut body = QuoteBody::new(image.mrtd, [rtmr0, rtmr1, rtmr2, rtmr3], mr_config_id_v1(&compose_hash), report_data);
        change(&mut body);
        (QuotingEnclave::new(&self.vendor).quote(&body), events)
    }

    /// Settings that believe the generated root.
    pub fn settings(&self, pccs: &Web, images: Option<&Web>) -> ConfigFile {
        ConfigFile { danger: Danger { simulated_root: Some(self.root()) }, ..settings(self.dir.path(), pccs, images) }
    }
}

pub fn settings(dir: &Path, pccs: &Web, images: Option<&Web>) -> ConfigFile {
    ConfigFile {
        address: [127, 0, 0, 1].into(),
        port: 0,
        collateral_url: pccs.address.clone(),
        amd_kds_url: String::new(),
        image_cache_dir: dir.join("images"),
        image_download_url: images.map(Web::image_template).unwrap_or_default(),
        max_verifications: 2,
        ..ConfigFile::default()
    }
}

pub fn verification(file: ConfigFile, now: u64) -> Verification {
    Verification::open_with_clock(&Settings::check(file, "test").unwrap(), move || now).unwrap()
}

/// An image, and the registers of a small VM that boots it in a software TEE.
pub struct Image {
    pub hash: OsImageHash,
    pub vm_config: VmConfig,
    pub mrtd: [u8; 48],
    pub rtmr: [[u8; 48]; 3],
    pub archive: Vec<u8>,
}

fn vm_config(hash: OsImageHash) -> VmConfig {
    VmConfig {
        spec_version: 1,
        os_image_hash: Some(hash),
        cpu_count: 2,
        memory_size: 2 << 30,
        qemu_version: Some("10.0.0".into()),
        num_nics: 1,
        host_share_mode: "vhd".into(),
        simulated_tee: Some("dstack-tdx".into()),
        ..VmConfig::default()
    }
}

impl Image {
    /// One whose measurement document travels with the evidence.
    pub fn documented() -> Self {
        let measurement = std::fs::read(format!("{MEASUREMENT_DATA}tdx/image1.measurement.tdx.cbor")).unwrap();
        let checksum_file = binding_line("measurement.tdx.cbor", &measurement).into_bytes();
        let hash = os_image_hash(&checksum_file);
        let vm_config = VmConfig { tdx_measurement: Some(MeasurementDocument { checksum_file, measurement }), ..vm_config(hash) };
        let (_, image) = bound_measurement(&vm_config).unwrap();
        let Ok(launch) = DocumentReference.expected(&image, &vm_config, AcpiSource::SoftwareTee) else { panic!("image1 is measured") };
        Self { hash, vm_config, mrtd: launch.mrtd, rtmr: launch.rtmr, archive: Vec::new() }
    }

    /// One that must be fetched to be measured.
    pub fn archived() -> Self {
        let mut firmware = Vec::new();
        let packed = std::fs::File::open(format!("{MEASUREMENT_DATA}tdx/virtee_OVMF.inteltdx.fd.gz")).unwrap();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut firmware).unwrap();
        let (kernel, initrd, cmdline) = (kernel(), b"initrd".to_vec(), "console=hvc0");
        let metadata = serde_json::json!({
            "bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initramfs", "rootfs": "rootfs", "cmdline": cmdline, "version": "0.5.5", "is_dev": true,
        });
        let files = [
            ("ovmf.fd", firmware.clone()),
            ("bzImage", kernel.clone()),
            ("initramfs", initrd.clone()),
            ("metadata.json", metadata.to_string().into_bytes()),
        ];
        let checksums: String = files.iter().map(|(name, bytes)| binding_line(name, bytes)).collect();
        let hash = os_image_hash(checksums.as_bytes());
        let vm_config = vm_config(hash);
        let shape = VmShape::try_from(&vm_config).unwrap();
        let acpi = acpi::tables(&shape, AcpiProfile::SOFTWARE_TEE).unwrap().digests();
        let files_of_image = ImageFiles { firmware: &firmware, kernel: &kernel, initrd: &initrd, cmdline };
        let registers = expected_from_files(&files_of_image, &shape, acpi).unwrap().registers;
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let sums = [("sha256sum.txt", checksums.into_bytes())];
        for (name, bytes) in files.iter().chain(&sums) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        let archive = tar.into_inner().unwrap().finish().unwrap();
        Self { hash, vm_config, mrtd: registers.mrtd, rtmr: [registers.rtmr0, registers.rtmr1, registers.rtmr2], archive }
    }
}

/// The smallest bzImage that is a PE image as well, with five-level paging.
fn kernel() -> Vec<u8> {
    const HEADERS: usize = 0x400;
    const PE: usize = 0x40;
    let mut image = vec![0_u8; HEADERS + 0x1000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &u32::try_from(PE).unwrap().to_le_bytes());
    put(PE, b"PE\0\0");
    put(PE + 6, &[1, 0]);
    put(PE + 20, &[240, 0]);
    put(PE + 24, &[0x0b, 0x02]);
    put(PE + 24 + 60, &u32::try_from(HEADERS).unwrap().to_le_bytes());
    put(PE + 24 + 108, &16_u32.to_le_bytes());
    let section = PE + 24 + 240;
    put(section, b".text");
    put(section + 16, &0x1000_u32.to_le_bytes());
    put(section + 20, &u32::try_from(HEADERS).unwrap().to_le_bytes());
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &0x7f_u16.to_le_bytes());
    put(HEADERS, &[0x90; 64]);
    image
}

/// A running service.
pub struct Service {
    pub address: SocketAddr,
    pub client: Client,
}

impl Service {
    pub async fn start(file: ConfigFile, now: u64) -> Self {
        let settings = Settings::check(file, "test").unwrap();
        let verification = Verification::open_with_clock(&settings, move || now).unwrap();
        let server = Server::with_verification(&settings, verification).await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(server.run(std::future::pending()));
        Self { address, client: Client::new(Endpoint::parse(&format!("http://{address}")).unwrap()) }
    }

    pub async fn post(&self, body: impl Into<Vec<u8>>) -> (StatusCode, Vec<u8>) {
        let answer = self.client.request(http::Method::POST, "/verify", http::HeaderMap::new(), body.into()).await.unwrap();
        (answer.status, answer.body)
    }

    pub async fn verify(&self, body: impl ToString) -> VerifyResponse {
        let (status, body) = self.post(body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub async fn refuse(&self, body: impl Into<Vec<u8>>) -> (StatusCode, RpcError) {
        let (status, body) = self.post(body).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.client.get(path).await.unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    }
}

pub fn outcome<'a>(answer: &'a VerifyResponse, name: &str) -> &'a str {
    answer.checks.iter().find(|line| line.name == name).map_or("absent", |line| line.outcome.as_str())
}
