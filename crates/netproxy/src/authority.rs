//! The daemon's certificate authority, which steps trust while they run.
//!
//! Its key is made by each daemon and never leaves memory. Certificates of hosts are signed when a
//! step connects to one, all for one key, and kept for further connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

/// How long the authority would be valid; it is forgotten with the daemon.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a host's certificate is valid.
const HOST_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Clocks of steps are ours, but not everybody rounds in the same direction.
const BEFORE: Duration = Duration::from_secs(3600);
/// Hosts whose certificates are kept.
const MOST_HOSTS: usize = 1024;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("use a certificate: {0}")]
    Use(#[from] rustls::Error),
}

/// See the module.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    host_key: KeyPair,
    hosts: Mutex<HashMap<String, (Instant, Arc<ServerConfig>)>>,
}

impl Authority {
    pub(crate) fn generate() -> Result<Self, CertificateError> {
        let mut params = params("rbuild step proxy", AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let pem = pem(params.self_signed(&key)?.der());
        let hosts = Mutex::default();
        Ok(Self { issuer: Issuer::new(params, key), pem, host_key: KeyPair::generate()?, hosts })
    }

    /// The authority's certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// How to be `host` for a step.
    pub(crate) fn server(&self, host: &str) -> Result<Arc<ServerConfig>, CertificateError> {
        let mut hosts = self.hosts.lock().expect("no panic while signing");
        if let Some((until, server)) = hosts.get(host)
            && Instant::now() < *until
        {
            return Ok(server.clone());
        }
        let mut params = params(host, HOST_LIFETIME);
        params.subject_alt_names = CertificateParams::new([host.to_owned()])?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.host_key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(self.host_key.serialize_der());
        let key = key.map_err(|error| rustls::Error::General(error.to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let server = Arc::new(server);
        if hosts.len() >= MOST_HOSTS {
            hosts.clear();
        }
        let until = Instant::now() + HOST_LIFETIME - BEFORE;
        hosts.insert(host.to_owned(), (until, server.clone()));
        Ok(server)
    }
}

fn params(name: &str, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Longer names are not allowed there, and nobody looks.
    let name: String = name.chars().take(64).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BEFORE;
    params.not_after = now + lifetime;
    params
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    /// A handshake of a client that trusts the authority and expects `name`.
    fn check(name: &'static str) {
        let authority = Authority::generate().unwrap();
        let text: String = authority.pem().lines().filter(|line| !line.starts_with('-')).collect();
        let mut roots = RootCertStore::empty();
        roots.add(BASE64_STANDARD.decode(text).unwrap().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(client), name.try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(authority.server(name).unwrap()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        let again = authority.server(name).unwrap();
        assert!(Arc::ptr_eq(&again, &authority.server(name).unwrap()), "it is kept");
    }

    #[test]
    fn hosts_are_who_they_are_asked_to_be() {
        check("host.example");
        check("127.0.0.1");
        check("::1");
    }
}
