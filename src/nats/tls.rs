//! TLS: what is trusted, whom we show ourselves as, and what goes wrong, in
//! words that name the file. rustls does the work, with ring.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};

use super::failure::Cause;
use super::login::{KEYS_SUPPORTED, Tls, read_bytes};

/// How to do a handshake with the servers of one list.
#[derive(Clone)]
pub(super) struct TlsSetup {
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    files: Tls,
}

impl TlsSetup {
    /// Reads the files that are named, or the system's roots.
    pub(super) fn read(files: &Tls) -> Result<TlsSetup, Cause> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(files)?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|_| match &files.ca {
            Some(ca) => Cause::Tls(format!("no certificate in {} can be used", ca.display())),
            None => Cause::Tls(
                "this system trusts no CA at all (ca-certificates is missing?): name one with \
                 --tlsca"
                    .into(),
            ),
        })?;
        Ok(TlsSetup { provider, verifier, files: files.clone() })
    }

    /// A configuration for a server that is known as one of `names`.
    pub(super) fn config(&self, names: &[&str]) -> Result<Arc<ClientConfig>, Cause> {
        let also = names.get(1).and_then(|name| server_name(name).ok());
        let verifier = OneOfTwoNames { inner: Arc::clone(&self.verifier), also };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Cause::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.files.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let unusable = || Cause::Tls(format!("{} cannot be used together", self.both()));
                let (cert, key) = match (read_bytes(cert), read_bytes(key)) {
                    (Ok(cert), Ok(key)) => (cert, key),
                    _ => return Err(unusable()),
                };
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
                let chain = chain.map_err(|_| unusable())?;
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| unusable())?;
                builder.with_client_auth_cert(chain, key).map_err(|_| unusable())?
            }
        };
        // Each session stands for itself: nothing is kept from one to the next.
        config.resumption = Resumption::disabled().tls12_resumption(Tls12Resumption::Disabled);
        Ok(Arc::new(config))
    }

    fn both(&self) -> String {
        both(&self.files).unwrap_or_default()
    }
}

/// A host as certificates name it.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, Cause> {
    let name = ServerName::try_from(host.to_owned());
    name.map_err(|_| Cause::Tls(format!("{host} is no name that a certificate can have")))
}

fn roots(files: &Tls) -> Result<RootCertStore, Cause> {
    let mut store = RootCertStore::empty();
    match &files.ca {
        Some(ca) => {
            let unusable = || Cause::Tls(format!("the CA file {} cannot be used", ca.display()));
            let text = read_bytes(ca).map_err(|_| unusable())?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                store.add(certificate.map_err(|_| unusable())?).map_err(|_| unusable())?;
            }
        }
        // Some of a system's are always of a kind that is not understood.
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(store)
}

/// Takes a certificate that is for the name in the list, or for the address at
/// which a member of the cluster was announced. Members are announced by
/// address while certificates carry names, and the other NATS clients, too,
/// expect the name of the list there.
struct OneOfTwoNames {
    inner: Arc<WebPkiServerVerifier>,
    also: Option<ServerName<'static>>,
}

impl fmt::Debug for OneOfTwoNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneOfTwoNames").field("also", &self.also).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for OneOfTwoNames {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify =
            |name| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match (verify(name), &self.also) {
            (Err(error), Some(also)) if is_other_name(&error) => verify(also).map_err(|_| error),
            (result, _) => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn is_other_name(error: &Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}

/// What a failed handshake with `host` is about.
pub(super) fn cause(error: &Error, host: &str, files: &Tls) -> Cause {
    Cause::Tls(match error {
        Error::InvalidCertificate(why) => of_server(why, host, files),
        Error::AlertReceived(alert) => of_alert(*alert, files),
        Error::InvalidMessage(_) => return Cause::NotTls,
        Error::PeerIncompatible(_) => {
            format!("the server and this program have no way of TLS in common: {error}")
        }
        other => other.to_string(),
    })
}

/// What is left where the server ends the connection instead of answering: one
/// that does not like what it sees may close before its alert is read.
pub(super) fn cause_of_end(files: &Tls) -> Cause {
    Cause::Tls(match both(files) {
        Some(files) => format!("the server ended the connection; does it accept {files}?"),
        None => "the server ended the connection during the login".into(),
    })
}

fn of_server(why: &CertificateError, host: &str, files: &Tls) -> String {
    use CertificateError as E;
    let issuer = match &files.ca {
        Some(ca) => format!("is not signed by any CA in {}", ca.display()),
        None => "is not signed by any CA that this system trusts (--tlsca names another)".into(),
    };
    let words = match why {
        E::Expired | E::ExpiredContext { .. } => "has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "is not valid yet, by this host's clock".into()
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            format!("is not for the name {host}")
        }
        E::UnknownIssuer => issuer,
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "is not meant for a server".into(),
        E::Revoked => "has been revoked".into(),
        E::BadSignature => "has a signature that is not its CA's".into(),
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            format!("has a signature that is not supported; {KEYS_SUPPORTED}")
        }
        // webpki's own errors have no variant of rustls.
        other => match format!("{other:?}") {
            text if text.contains("CaUsedAsEndEntity") => {
                "is that of a CA, which no server may use".into()
            }
            text if text.contains("UnsupportedSignatureAlgorithm") => {
                format!("has a signature that is not supported; {KEYS_SUPPORTED}")
            }
            text => format!("is not valid: {text}"),
        },
    };
    format!("the server's certificate {words}")
}

/// Alerts are those of RFC 8446, 6.2.
fn of_alert(alert: AlertDescription, files: &Tls) -> String {
    use AlertDescription as A;
    let ours = match &files.client {
        Some((cert, _)) => format!("our certificate {}", cert.display()),
        None => "that we show no certificate".into(),
    };
    let words = match alert {
        A::HandshakeFailure | A::InsufficientSecurity => {
            return format!(
                "the server found no common ground for the handshake; a certificate with a \
                 P-521 key does that, which is not supported; {KEYS_SUPPORTED}"
            );
        }
        A::ProtocolVersion => return "the server speaks neither TLS 1.2 nor 1.3".into(),
        A::CertificateExpired => "it has expired",
        A::CertificateRevoked => "it has been revoked",
        A::UnknownCA => "it does not know its CA",
        A::DecryptError | A::IllegalParameter => "key and certificate do not belong together",
        A::UnsupportedCertificate | A::BadCertificate | A::CertificateUnknown | A::AccessDenied => {
            "it does not accept it"
        }
        A::CertificateRequired => "it wants one (--tlscert with --tlskey)",
        other => return format!("the server ended the handshake: {other:?}"),
    };
    format!("the server refuses {ours}: {words}")
}

fn both(files: &Tls) -> Option<String> {
    let (cert, key) = files.client.as_ref()?;
    Some(format!("the certificate {} and the key {}", cert.display(), key.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_names_its_file() {
        let plain = Tls::default();
        let full =
            Tls { ca: Some("/ca.pem".into()), client: Some(("/c.pem".into(), "/k.pem".into())) };
        let certificate = Error::InvalidCertificate;
        for (error, files, words) in [
            (
                certificate(CertificateError::UnknownIssuer),
                &plain,
                "TLS: the server's certificate is not signed by any CA that this system trusts \
                 (--tlsca names another)",
            ),
            (
                certificate(CertificateError::UnknownIssuer),
                &full,
                "TLS: the server's certificate is not signed by any CA in /ca.pem",
            ),
            (
                certificate(CertificateError::NotValidForName),
                &full,
                "TLS: the server's certificate is not for the name nats.example",
            ),
            (
                certificate(CertificateError::Expired),
                &full,
                "TLS: the server's certificate has expired",
            ),
            (
                certificate(CertificateError::NotValidYet),
                &full,
                "TLS: the server's certificate is not valid yet, by this host's clock",
            ),
            (
                certificate(CertificateError::BadSignature),
                &full,
                "TLS: the server's certificate has a signature that is not its CA's",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                &full,
                "TLS: the server refuses our certificate /c.pem: it has expired",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                &plain,
                "TLS: the server refuses that we show no certificate: it wants one (--tlscert \
                 with --tlskey)",
            ),
            (
                Error::AlertReceived(AlertDescription::ProtocolVersion),
                &plain,
                "TLS: the server speaks neither TLS 1.2 nor 1.3",
            ),
            (
                Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
                &plain,
                "TLS: what answers does not speak TLS",
            ),
        ] {
            assert_eq!(cause(&error, "nats.example", files).to_string(), words);
        }
        assert_eq!(
            cause_of_end(&full).to_string(),
            "TLS: the server ended the connection; does it accept the certificate /c.pem and the \
             key /k.pem?"
        );
    }
}
