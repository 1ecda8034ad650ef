//! The software TEE's service in this process.

use std::{path::Path, sync::Arc};

use dstack_tee_simulator::{Config, Daemon, Vendor};
use tokio::{sync::oneshot, task::JoinHandle};

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    /// Runs what `serve` gives until this value is dropped or stopped.
    pub fn start<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop: Some(stop), task: tokio::spawn(serve(stopped)) }
    }

    /// Ends it and waits for its end.
    ///
    /// # Panics
    /// When it panicked.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
    }
}

/// A vendor of its own, and its collateral service on a free port.
#[derive(Debug)]
pub struct SoftwareTee {
    /// Signs quotes.
    pub vendor: Arc<Vendor>,
    /// Where its collateral is fetched from.
    pub collateral_url: String,
    _running: Running,
}

impl SoftwareTee {
    /// Starts one; its state is `tee` below `directory`, with the vendor's root certificate in `tee/root.pem`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start(directory: &Path) -> Self {
        let config = Config {
            state_dir: directory.join("tee"),
            control_socket: directory.join("tee.sock"),
            collateral_listen: ([127, 0, 0, 1], 0).into(),
            kernel_vsock: false,
            pid_file: std::path::PathBuf::new(),
        };
        let daemon = Daemon::open(&config).await.unwrap();
        let (vendor, collateral_url) = (Arc::clone(daemon.vendor()), format!("http://{}", daemon.addresses().collateral));
        let running = Running::start(|stopped| daemon.serve(async { drop(stopped.await) }));
        Self { vendor, collateral_url, _running: running }
    }
}
