//! The launch measurement an OS image and a VM configuration must produce.
