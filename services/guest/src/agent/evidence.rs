//! Quotes and events. Calls to the TEE block, so each runs on a thread of its own, and few at a time.

use std::sync::Arc;

use dstack_api::RpcError;
use dstack_attestation::{ReportData, TdFields, UnverifiedQuote};
use dstack_attester::{Attester, AttesterError, Quoted};
use dstack_event_log::{Event, EventVersion, names};
use tokio::sync::{Mutex, OnceCell, Semaphore};

/// Calls to the TEE at a time, from containers and from elsewhere: strangers must not be able to keep containers waiting.
const INSIDE_CALLS: usize = 8;
const OUTSIDE_CALLS: usize = 2;
/// Bounds of the log; verifiers refuse longer ones, and a guest could then prove nothing any more.
const MAX_EVENTS: usize = 4096;
const MAX_LOG_BYTES: usize = 2 << 20;
/// Names that only the boot uses.
const RESERVED: [&str; 12] = [
    names::SYSTEM_PREPARING,
    names::APP_ID,
    names::COMPOSE_HASH,
    names::INIT_SCRIPT_HASH,
    names::GPU_POLICY_HASH,
    "gpu-attestation",
    names::INSTANCE_ID,
    names::BOOT_MR_DONE,
    names::OS_IMAGE_HASH,
    names::KEY_PROVIDER,
    names::STORAGE_FS,
    names::SYSTEM_READY,
];

/// On whose behalf the TEE is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A container, or the agent itself.
    Inside,
    /// A stranger or the host.
    Outside,
}

/// The TEE of this guest for asynchronous callers.
#[derive(Debug)]
pub(crate) struct EvidenceDesk {
    attester: Arc<Attester>,
    sys_config: String,
    inside: Semaphore,
    outside: Semaphore,
    emitting: Mutex<()>,
    fields: OnceCell<TdFields>,
}

impl EvidenceDesk {
    pub(crate) fn new(attester: Arc<Attester>, sys_config: String) -> Self {
        Self {
            attester,
            sys_config,
            inside: Semaphore::new(INSIDE_CALLS),
            outside: Semaphore::new(OUTSIDE_CALLS),
            emitting: Mutex::new(()),
            fields: OnceCell::new(),
        }
    }

    pub(crate) fn attester(&self) -> &Arc<Attester> {
        &self.attester
    }

    async fn run<T: Send + 'static>(
        &self,
        asker: Asker,
        work: impl FnOnce(&Attester) -> Result<T, AttesterError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let slots = match asker {
            Asker::Inside => &self.inside,
            Asker::Outside => &self.outside,
        };
        let _slot = slots.acquire().await.map_err(|_| RpcError::internal("the agent stops"))?;
        let attester = Arc::clone(&self.attester);
        let outcome = tokio::task::spawn_blocking(move || work(&attester)).await;
        outcome.map_err(|_| RpcError::internal("the call to the TEE broke off"))?.map_err(|error| RpcError::from_user_facing(&error))
    }

    /// A quote over exactly these bytes.
    pub(crate) async fn quote(&self, report_data: ReportData, asker: Asker) -> Result<Quoted, RpcError> {
        let config = self.sys_config.clone();
        self.run(asker, move |attester| attester.quote(&report_data, &config)).await
    }

    /// All events so far, with full digests.
    pub(crate) async fn events(&self, asker: Asker) -> Result<Vec<Event>, RpcError> {
        self.run(asker, Attester::event_log).await
    }

    /// What a quote says about this TD. Taken once: RTMR0 to RTMR2 do not change any more, and RTMR3 is to be replayed.
    pub(crate) async fn td_fields(&self) -> Result<&TdFields, RpcError> {
        let take = async {
            let quoted = self.quote([0; 64], Asker::Inside).await?;
            let quote = UnverifiedQuote::parse(&quoted.quote).map_err(|error| RpcError::internal(format!("own quote: {error}")))?;
            Ok(quote.fields().clone())
        };
        self.fields.get_or_try_init(|| take).await
    }

    /// Measures an event of the application.
    pub(crate) async fn emit(&self, name: String, payload: Vec<u8>, version: EventVersion) -> Result<(), RpcError> {
        let refuse = |cause: String| Err(RpcError::new("agent/event-refused", cause, "choose another name or a shorter payload"));
        if name.is_empty() {
            return refuse("the event has no name".to_owned());
        }
        if RESERVED.contains(&name.as_str()) {
            return refuse(format!("the event name {name} is reserved for the boot"));
        }
        let _one_at_a_time = self.emitting.lock().await;
        let events = self.run(Asker::Inside, Attester::runtime_events).await?;
        if !events.iter().any(|event| event.event == names::SYSTEM_READY) {
            return Err(RpcError::new(
                "agent/not-ready",
                "the system is not ready for events of the application",
                "try again after the boot",
            ));
        }
        let bytes: usize = events.iter().map(|event| event.event.len() + event.payload.len()).sum();
        if events.len() >= MAX_EVENTS || bytes + name.len() + payload.len() > MAX_LOG_BYTES {
            let cause = format!("the event log is full: at most {MAX_EVENTS} events with {MAX_LOG_BYTES} bytes per boot");
            return Err(RpcError::new("agent/event-log-full", cause, "measure digests instead of data, or restart the VM"));
        }
        self.run(Asker::Inside, move |attester| attester.extend_runtime_event(&name, &payload, version)).await
    }
}

/// `bytes` with zeros behind them.
///
/// Errors: more than 64 bytes.
pub(crate) fn padded_report_data(bytes: &[u8]) -> Result<ReportData, RpcError> {
    let mut data = [0; 64];
    let Some(start) = data.get_mut(..bytes.len()) else {
        let cause = format!("Report data is too long: {} bytes, at most 64", bytes.len());
        return Err(RpcError::new("agent/report-data-too-long", cause, "quote a digest of the data"));
    };
    start.copy_from_slice(bytes);
    Ok(data)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn report_data_is_padded_on_the_right() {
        let data = padded_report_data(b"ab").unwrap();

        assert_eq!(data.split_at(2).0, b"ab");
        assert!(data.iter().skip(2).all(|byte| *byte == 0));
        assert_eq!(padded_report_data(&[7; 64]).unwrap(), [7; 64]);
        assert!(padded_report_data(&[7; 65]).unwrap_err().message.starts_with("Report data is too long"));
    }
}
