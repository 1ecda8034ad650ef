//! The software TEE, reached through the host channel that a TDX quote request uses.

use std::time::Duration;

use dstack_api::tee_simulator::{Extend, QuoteAnswer, QuoteRequest, SealingKeyAnswer, SealingKeyRequest, TdState};
use dstack_attestation::ReportData;
use dstack_event_log::{Digest384, Event};
use dstack_rpc::{Client, Endpoint};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{AttesterError, SealingKey, TeeDevice};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Client of a software TEE's device interface. Its evidence chains to a generated root that verifiers must be told to accept.
#[derive(Debug)]
pub struct SimulatedDevice {
    client: Client,
}

impl SimulatedDevice {
    /// A device at `endpoint`, such as `vsock://2:4050` or `unix:/path`; it must answer.
    pub fn connect(endpoint: &str) -> Result<Self, AttesterError> {
        let endpoint = Endpoint::parse(endpoint).map_err(|error| AttesterError::Simulated { reason: error.to_string() })?;
        let device = Self { client: Client::new(endpoint).with_timeout(TIMEOUT) };
        device.state()?;
        Ok(device)
    }

    fn state(&self) -> Result<TdState, AttesterError> {
        self.call(Method::GET, "/td", None::<&()>)
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, AttesterError> {
        let refused = |reason: String| AttesterError::Simulated { reason };
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| refused(error.to_string()))?.unwrap_or_default();
        // A thread of its own: this call works inside and outside of an asynchronous runtime.
        let answer = std::thread::scope(|scope| {
            let exchange = scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| refused(error.to_string()))?;
                let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
                // A fresh connection: one kept alive would belong to the runtime of the call before.
                let client = Client::new(self.client.endpoint().clone()).with_timeout(TIMEOUT);
                runtime.block_on(client.request(method, path, headers, body)).map_err(|error| refused(error.to_string()))
            });
            exchange.join().unwrap_or_else(|_| Err(refused("the call panicked".to_owned())))
        })?;
        if !answer.status.is_success() {
            return Err(refused(format!(
                "{}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>()
            )));
        }
        serde_json::from_slice(&answer.body).map_err(|error| refused(error.to_string()))
    }
}

impl TeeDevice for SimulatedDevice {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, AttesterError> {
        let request = QuoteRequest { report_data: report_data.to_vec() };
        self.call::<QuoteAnswer>(Method::POST, "/quote", Some(&request)).map(|answer| answer.quote)
    }

    fn sealing_key(&self, label: &str) -> Result<SealingKey, AttesterError> {
        let request = SealingKeyRequest { label: label.to_owned() };
        let answer = self.call::<SealingKeyAnswer>(Method::POST, "/sealing-key", Some(&request))?;
        let bytes = Zeroizing::new(answer.key);
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
        key.map_err(|_| AttesterError::Answer { what: "no sealing key of 32 bytes".into() })
    }

    fn rtmr3(&self) -> Result<Digest384, AttesterError> {
        let state = self.state()?;
        let value = state.rtmr.get(3).and_then(|value| value.as_slice().try_into().ok());
        value.ok_or_else(|| AttesterError::Answer { what: "no RTMR3 of 48 bytes".into() })
    }

    fn extend_rtmr3(&self, digest: &Digest384) -> Result<(), AttesterError> {
        self.call::<TdState>(Method::POST, "/extend", Some(&Extend { index: 3, digest: digest.to_vec() })).map(|_| ())
    }

    fn boot_events(&self) -> Result<Vec<Event>, AttesterError> {
        serde_json::from_str(&self.state()?.boot_event_log)
            .map_err(|error| AttesterError::Answer { what: format!("a boot event log with {error}") })
    }
}
