//! Everything of ours inside the CVM: dstack-init (PID 1) and dstack-guest-agent.
