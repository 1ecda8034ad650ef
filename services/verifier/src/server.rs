//! Start and life of the service.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::Router;
use dstack_api::UserFacing;
use dstack_os_image::fetch::{FetchError as ImageError, ImageFetcher};
use dstack_ra_tls::collateral::FetchError;
use dstack_rpc::{ListenError, Listener, system_tls};

use crate::{Verification, api, config::Settings};

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Collateral service.
    #[error(transparent)]
    Collateral(#[from] FetchError),
    /// Image cache or address.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// Listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl UserFacing for StartError {
    fn code(&self) -> &'static str {
        match self {
            Self::Collateral(error) => error.code(),
            Self::Images(error) => error.code(),
            Self::Listen(error) => error.code(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Collateral(error) => error.fix(),
            Self::Images(error) => error.fix(),
            Self::Listen(error) => error.fix(),
        }
    }
}

impl Verification {
    /// A verification as `settings` say, by the clock of this machine.
    ///
    /// Errors: collateral service or image cache cannot be used.
    pub fn open(settings: &Settings) -> Result<Self, StartError> {
        Self::open_with_clock(settings, unix_now)
    }

    /// The same by another clock (Unix seconds): for evidence of another day, in tests.
    ///
    /// Errors: collateral service or image cache cannot be used.
    pub fn open_with_clock(settings: &Settings, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Result<Self, StartError> {
        let template = &settings.file.image_download_url;
        let images = if template.is_empty() {
            None
        } else {
            Some(ImageFetcher::open(template, system_tls(), &settings.file.image_cache_dir, settings.fetch_limits())?)
        };
        Ok(Self::new(
            settings,
            crate::papers::Papers { intel: settings.collateral()?, amd: settings.chip_keys()? },
            images,
            Arc::new(clock),
        ))
    }
}

/// A service that is ready to run: address bound.
pub struct Server {
    router: Router,
    listener: Listener,
    ready_file: Option<PathBuf>,
}

impl Server {
    /// Binds the address.
    ///
    /// Errors: see [`StartError`].
    pub async fn open(settings: &Settings) -> Result<Self, StartError> {
        Self::with_verification(settings, Verification::open(settings)?).await
    }

    /// Binds the address for a verification made before.
    ///
    /// Errors: see [`StartError`].
    pub async fn with_verification(settings: &Settings, verification: Verification) -> Result<Self, StartError> {
        if let Some(path) = &settings.file.danger.simulated_root {
            tracing::warn!(setting = "danger.simulated_root", path = %path.display(), "evidence of a software TEE is believed");
        }
        let listener = Listener::tcp(settings.listen()).await?;
        Ok(Self { router: api::router(verification, &settings.file), listener, ready_file: settings.file.ready_file.clone() })
    }

    /// Address in use.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` completes, then lets running requests end.
    ///
    /// Errors: readiness could not be announced.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        tracing::info!(address = self.local_addr().map(|address| address.to_string()), "serving");
        dstack_service::readiness::announce(self.ready_file.as_deref())?;
        dstack_rpc::serve(self.listener, self.router, shutdown).await;
        Ok(())
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
