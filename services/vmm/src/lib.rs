//! Lifecycle of confidential VMs on one host.
