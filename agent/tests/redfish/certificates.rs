//! Certificates as BMCs have them, made by openssl: which are believed, at a service that also asks for a password.

use super::Service;
use crashyard_agent::controller::metal::chassis::Chassis as _;
use crashyard_agent::controller::metal::redfish::{Redfish, RedfishConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion, crypto::aws_lc_rs, version};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;

/// bcrypt's of "secret".
const SECRET: &str = "$2b$04$XT7kANUs2ssJrNeKnFYzuuiiOZwMPNRMo.pl3Gfu2qU9lfBobRHHC";

/// Where the services of these tests are.
const HERE: &str = "subjectAltName=IP:127.0.0.1";
/// Where they are not.
const ELSEWHERE: &str = "subjectAltName=DNS:elsewhere.example";
/// Without it, openssl says that a certificate may sign others.
const SIGNS_NONE: &str = "basicConstraints=critical,CA:FALSE";

/// Certificates and keys, and who may ask.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("users", &format!("admin:{SECRET}\n"));
        files.write("right", "secret\n");
        files.write("wrong", "mistyped\n");
        files
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.at(name), text).unwrap();
        std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// `NAME.pem` and `NAME.key`, signed by itself or by another of these.
    fn certificate(&self, name: &str, extensions: &[&str], signer: Option<&str>) {
        let [file, key] = ["pem", "key"].map(|end| self.at(&format!("{name}.{end}")));
        let mut openssl = std::process::Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=bmc", "-out"])
            .arg(file)
            .arg("-keyout")
            .arg(key)
            .args(extensions.iter().flat_map(|extension| ["-addext", extension]))
            .stderr(Stdio::null());
        if let Some(signer) = signer {
            openssl.arg("-CA").arg(self.at(&format!("{signer}.pem")));
            openssl.arg("-CAkey").arg(self.at(&format!("{signer}.key")));
        }
        assert!(openssl.status().expect("openssl (Debian package openssl)").success());
    }

    /// One of last century, for the same key and signed by another of these. `req` knows no dates.
    fn age(&self, name: &str, signer: &str) {
        self.write("index", "");
        self.write(
            "ca.conf",
            "[ca]\ndefault_ca = old\n\
             [old]\ndatabase = index\nrand_serial = yes\nnew_certs_dir = .\ndefault_md = sha256\npolicy = any\n\
             x509_extensions = service\n\
             [any]\ncommonName = supplied\n\
             [service]\nsubjectAltName = IP:127.0.0.1\n",
        );
        let [file, key, request] = ["pem", "key", "csr"].map(|end| format!("{name}.{end}"));
        for words in [
            format!("req -new -subj /CN=bmc -key {key} -out {request}"),
            format!(
                "ca -batch -notext -config ca.conf -startdate 19990101000000Z -enddate 19990102000000Z \
                 -cert {signer}.pem -keyfile {signer}.key -in {request} -out {file}"
            ),
        ] {
            let mut openssl = std::process::Command::new("openssl");
            openssl.args(words.split_whitespace()).current_dir(self.0.path()).stderr(Stdio::null());
            assert!(openssl.status().unwrap().success(), "{words}");
        }
    }

    /// A service that has this certificate.
    async fn service(&self, name: &str) -> Service {
        let [file, key] = ["pem", "key"].map(|end| self.at(&format!("{name}.{end}")).display().to_string());
        let users = format!("SUSHY_EMULATOR_AUTH_FILE = {:?}\n", self.at("users").display().to_string());
        Service::configured(&["--fake", "--ssl-certificate", &file, "--ssl-key", &key], &users).await
    }

    /// What asking with the right password comes to, where this certificate was given.
    async fn asked(&self, service: &Service, given: Option<&str>) -> Result<bool, String> {
        let config = RedfishConfig { ca_file: given.map(|name| self.at(&format!("{name}.pem"))), ..service.config() };
        self.ask("right", config).await
    }

    async fn ask(&self, password: &str, config: RedfishConfig) -> Result<bool, String> {
        let config = RedfishConfig { user: Some("admin".into()), password_file: Some(self.at(password)), ..config };
        Redfish::new(&config).unwrap().is_on().await.map_err(|error| format!("{error:#}"))
    }

    /// Greets whoever comes first with this certificate, and with that key. No real server does so with a key of another's.
    fn greets(
        &self,
        certificate: &str,
        key: &str,
        version: &'static SupportedProtocolVersion,
    ) -> (RedfishConfig, JoinHandle<std::io::Result<()>>) {
        let certificate = CertificateDer::from_pem_file(self.at(&format!("{certificate}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.at(&format!("{key}.key"))).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key))));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = super::way(&format!("https://{}", listener.local_addr().unwrap()));
        let greeting = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept()?;
            ServerConnection::new(Arc::new(config)).unwrap().complete_io(&mut socket).map(drop)
        });
        (way, greeting)
    }
}

#[tokio::test]
async fn a_service_is_known_by_its_certificate_and_knows_by_a_password_who_asks() {
    let files = Files::new();
    for (name, extensions) in [("signs-none", &[HERE, SIGNS_NONE][..]), ("may-sign", &[HERE])] {
        files.certificate(name, extensions, None);
        files.certificate("other", extensions, None);
        let service = files.service(name).await;
        files.asked(&service, Some(name)).await.unwrap();
        for strange in [None, Some("other")] {
            let refused = files.asked(&service, strange).await.unwrap_err();
            assert!(refused.contains("invalid peer certificate"), "{name}: {refused}");
        }
        let any = RedfishConfig { insecure: true, ..service.config() };
        files.ask("right", any.clone()).await.unwrap();
        let refused = files.ask("wrong", any).await.unwrap_err();
        assert!(refused.contains("401") && !refused.contains("mistyped"), "{refused}");
    }
}

#[tokio::test]
async fn a_certificate_that_another_signed_is_for_the_host_that_it_names_unless_it_was_given_itself() {
    let files = Files::new();
    files.certificate("ca", &[], None);
    files.certificate("here", &[HERE, SIGNS_NONE], Some("ca"));
    files.certificate("elsewhere", &[ELSEWHERE, SIGNS_NONE], Some("ca"));
    let here = files.service("here").await;
    files.asked(&here, Some("ca")).await.unwrap();
    let elsewhere = files.service("elsewhere").await;
    let refused = files.asked(&elsewhere, Some("ca")).await.unwrap_err();
    assert!(refused.contains("certificate not valid for name"), "{refused}");
    files.asked(&elsewhere, Some("elsewhere")).await.unwrap();
    let refused = files.asked(&here, Some("elsewhere")).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_is_believed_only_where_it_was_given_itself() {
    let files = Files::new();
    files.certificate("ca", &[], None);
    files.certificate("old", &[], None);
    files.age("old", "ca");
    let service = files.service("old").await;
    let refused = files.asked(&service, Some("ca")).await.unwrap_err();
    assert!(refused.contains("expired"), "{refused}");
    files.asked(&service, Some("old")).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_was_given_is_not_believed_of_who_has_not_its_key() {
    let files = Files::new();
    files.certificate("bmc", &[HERE], None);
    files.certificate("thief", &[HERE], None);
    for version in [&version::TLS12, &version::TLS13] {
        for (key, believed) in [("bmc", true), ("thief", false)] {
            let (way, greeting) = files.greets("bmc", key, version);
            let error =
                files.ask("right", RedfishConfig { ca_file: Some(files.at("bmc.pem")), ..way }).await.unwrap_err();
            assert_eq!(greeting.join().unwrap().is_ok(), believed, "{version:?}, the key of {key}: {error}");
            assert_eq!(error.contains("BadSignature"), !believed, "{error}");
        }
    }
}

#[test]
fn a_file_that_has_no_certificate_is_named() {
    let files = Files::new();
    for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        files.write("empty.pem", text);
        let way = RedfishConfig { ca_file: Some(files.at("empty.pem")), ..super::way("https://127.0.0.1:1") };
        let error = format!("{:#}", Redfish::new(&way).err().expect("refused"));
        assert!(error.contains("empty.pem"), "{error}");
    }
}
