//! Intel SGX: the verifier of its quotes. Enclaves are not dstack guests; key providers and other stacks use them.

use crate::{Context, Platform, PlatformVerifier, Refusal, UnverifiedSgxQuote, VerifiedPlatform, dcap};

/// Verifies SGX quotes of version 3.
#[derive(Debug, Clone, Copy, Default)]
pub struct SgxVerifier;

impl PlatformVerifier for SgxVerifier {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::Sgx
    }

    fn verify(&self, quote: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        let parsed = UnverifiedSgxQuote::parse(quote).map_err(|error| dcap::malformed(Platform::Sgx, &error))?;
        dcap::verify(&dcap::Parsed::Sgx(&parsed), quote, context)
    }
}
