//! Serve and call the api over TCP, Unix socket, vsock and RA-TLS.
