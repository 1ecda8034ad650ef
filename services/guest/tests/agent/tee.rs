//! The device side of the software TEE, over a Unix socket, for one TD.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use dstack_api::tee_simulator::{Extend, QuoteAnswer, QuoteRequest, TdState};
use dstack_event_log::{Event, extend, replay};
use dstack_rpc::{Listener, serve};
use dstack_tee_simulator::{QuoteBody, QuotingEnclave, Vendor};

pub(crate) const MRTD: [u8; 48] = [0x11; 48];

pub(crate) struct Td {
    vendor: Vendor,
    boot_events: Vec<Event>,
    registers: Mutex<[[u8; 48]; 4]>,
    pub(crate) quotes: Mutex<usize>,
}

impl Td {
    pub(crate) fn new() -> Arc<Self> {
        let boot_events =
            vec![Event::boot(0, 1, &[1; 48], "firmware"), Event::boot(1, 2, &[2; 48], "kernel"), Event::boot(2, 3, &[3; 48], "")];
        let registers = replay(&boot_events).unwrap().0;
        Arc::new(Self {
            vendor: Vendor::generate(1_700_000_000).unwrap(),
            boot_events,
            registers: Mutex::new(registers),
            quotes: Mutex::new(0),
        })
    }

    fn state(&self) -> TdState {
        TdState {
            mrtd: MRTD.to_vec(),
            rtmr: self.registers.lock().unwrap().map(|register| register.to_vec()).to_vec(),
            mr_config_id: vec![0; 48],
            boot_event_log: serde_json::to_string(&self.boot_events).unwrap(),
        }
    }

    fn quote(&self, report_data: &[u8]) -> Vec<u8> {
        *self.quotes.lock().unwrap() += 1;
        let registers = *self.registers.lock().unwrap();
        QuotingEnclave::new(&self.vendor).quote(&QuoteBody::new(MRTD, registers, [0; 48], report_data.try_into().unwrap()))
    }
}

pub(crate) async fn must_serve(td: Arc<Td>, socket: &Path) {
    let router = Router::new()
        .route("/td", get(async |State(td): State<Arc<Td>>| Json(td.state())))
        .route(
            "/extend",
            post(async |State(td): State<Arc<Td>>, Json(request): Json<Extend>| {
                assert_eq!(request.index, 3);
                let mut registers = td.registers.lock().unwrap();
                registers[3] = extend(&registers[3], &request.digest.try_into().unwrap());
                drop(registers);
                Json(td.state())
            }),
        )
        .route(
            "/quote",
            post(async |State(td): State<Arc<Td>>, Json(request): Json<QuoteRequest>| {
                Json(QuoteAnswer { quote: td.quote(&request.report_data) })
            }),
        )
        .with_state(td);
    let listener = Listener::unix(socket, 0o600).await.unwrap();
    tokio::spawn(serve(listener, router, std::future::pending()));
}
