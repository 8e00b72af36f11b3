//! Power by Redfish (DMTF DSP0266): what a service really advertises, and nothing assumed.
//!
//! Every operation reads the system first and uses the targets and values it finds there; what is not among them is an
//! error that says so. State is confirmed by reading it again, since services answer before they act.

use super::certificates;
use super::chassis::Chassis;
use super::config::password;
use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use crashyard_protocol::client;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one answer may take; BMCs are slow.
const ANSWER: Duration = Duration::from_secs(30);

/// Largest document that is read.
const DOCUMENT: u64 = 8 << 20;

/// Entries of the event logs that are read at most.
const EVENTS: usize = 4096;

/// Pages of one log that are followed at most.
const PAGES: usize = 64;

/// A service in the controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedfishConfig {
    /// Where it is: `https://10.0.0.7`.
    pub url: String,
    /// Id of the system, where the service has more than one.
    #[serde(default)]
    pub system: Option<String>,
    /// An account that may reset.
    #[serde(default)]
    pub user: Option<String>,
    /// File with its password, on one line.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// File with the service's certificate, or with the one that signs it, in PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Takes any certificate. Whoever is between controller and BMC may then read the password.
    #[serde(default)]
    pub insecure: bool,
}

impl RedfishConfig {
    /// Paths in it are relative to the configuration's directory.
    pub fn relative_to(&mut self, base: &Path) {
        for file in [&mut self.password_file, &mut self.ca_file].into_iter().flatten() {
            *file = base.join(&*file);
        }
    }
}

/// A system behind a service.
pub struct Redfish {
    http: Client,
    base: Url,
    system: Option<String>,
    login: Option<(String, String)>,
}

impl Redfish {
    /// For a service; reads the password and the certificate.
    pub fn new(config: &RedfishConfig) -> anyhow::Result<Self> {
        let base: Url = config.url.parse().with_context(|| format!("the service's address {:?}", config.url))?;
        ensure!(matches!(base.scheme(), "http" | "https"), "{base} is neither http nor https");
        // A redirect could lead the password elsewhere.
        let mut builder =
            client::builder(&config.url).timeout(ANSWER).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if config.insecure {
            builder = builder.tls_danger_accept_invalid_certs(true);
        } else if let Some(file) = &config.ca_file {
            let pem = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let tls = certificates::known_by(&pem).with_context(|| format!("the certificate in {}", file.display()))?;
            builder = builder.tls_backend_preconfigured(tls);
        }
        let login = match (&config.user, &config.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), password(file)?)),
            (None, None) => None,
            _ => bail!("redfish: user and password_file go together"),
        };
        Ok(Self { http: builder.build()?, base, system: config.system.clone(), login })
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        // A path of the service's own, never another host that a document names.
        ensure!(path.starts_with('/') && !path.starts_with("//"), "the service names a strange path: {path:?}");
        let request = self.http.request(method, self.base.join(path)?);
        Ok(match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        })
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| format!("ask {}", self.base))?;
        let (status, path) = (answer.status(), answer.url().path().to_owned());
        if status.is_success() {
            return Ok(answer);
        }
        let said = read(answer).await.ok().and_then(|document| {
            let error = document.get("error")?;
            let extended = error.pointer("/@Message.ExtendedInfo/0/Message");
            Some(extended.or_else(|| error.get("message"))?.as_str()?.to_owned())
        });
        bail!("{path}: {status} {}", said.unwrap_or_default())
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        read(self.send(self.request(Method::GET, path)?).await?).await
    }

    /// The system, as it is now.
    async fn system(&self) -> anyhow::Result<Value> {
        if let Some(id) = &self.system {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            ensure!(id.chars().all(plain), "{id:?} is no id of a system");
            return self.get(&format!("/redfish/v1/Systems/{id}")).await;
        }
        let all = self.get("/redfish/v1/Systems").await?;
        match links(&all).as_slice() {
            [one] => self.get(one).await,
            many => bail!("the service has {} systems; name one of {} in `system`", many.len(), many.join(", ")),
        }
    }

    /// Changes properties of a system that was just read.
    async fn change(&self, system: &Value, change: &Value) -> anyhow::Result<()> {
        let path = link(system).context("the system has no path")?;
        let mut request = self.request(Method::PATCH, &path)?.json(change);
        // Services that keep versions refuse a change to one that they were not shown.
        if let Some(tag) = system.get("@odata.etag").and_then(Value::as_str) {
            request = request.header("If-Match", tag);
        }
        self.send(request).await.map(drop)
    }

    async fn reset_to(&self, wanted: &[&str]) -> anyhow::Result<String> {
        let system = self.system().await?;
        let action = system.pointer("/Actions/#ComputerSystem.Reset").context("the system advertises no reset")?;
        let allowed = values(action, "ResetType");
        // A service that names no values says nothing about them.
        let kind = wanted.iter().find(|kind| allowed.is_empty() || allowed.iter().any(|one| one == *kind));
        let kind = kind.with_context(|| {
            format!("the system advertises none of {}; it has {}", wanted.join(", "), allowed.join(", "))
        })?;
        let target = action.get("target").and_then(Value::as_str).context("the reset has no target")?;
        let request = self.request(Method::POST, target)?.json(&json!({ "ResetType": kind }));
        self.send(request).await.with_context(|| format!("reset by {kind}"))?;
        Ok(format!("the service took the reset {kind}"))
    }
}

/// A document of bounded size.
async fn read(answer: Response) -> anyhow::Result<Value> {
    ensure!(
        answer.content_length().is_none_or(|length| length <= DOCUMENT),
        "a document of more than {DOCUMENT} bytes"
    );
    let mut answer = answer;
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        bytes.extend_from_slice(&piece);
        ensure!(bytes.len() as u64 <= DOCUMENT, "a document of more than {DOCUMENT} bytes");
    }
    serde_json::from_slice(&bytes).context("the service's answer is no JSON")
}

/// The members of a collection.
fn links(collection: &Value) -> Vec<String> {
    let members = collection.get("Members").and_then(Value::as_array);
    members.into_iter().flatten().filter_map(link).collect()
}

fn link(value: &Value) -> Option<String> {
    Some(value.get("@odata.id")?.as_str()?.to_owned())
}

/// What a property may be set to, as far as the service says.
fn values(object: &Value, property: &str) -> Vec<String> {
    let values = object.get(format!("{property}@Redfish.AllowableValues")).and_then(Value::as_array);
    values.into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

#[async_trait]
impl Chassis for Redfish {
    fn what(&self) -> String {
        format!("Redfish at {}", self.base.host_str().unwrap_or_default())
    }

    fn who(&self) -> &'static str {
        "the service"
    }

    async fn is_on(&self) -> anyhow::Result<bool> {
        match self.system().await?.get("PowerState").and_then(Value::as_str) {
            // On its way down it is still on, on its way up not yet.
            Some("On" | "PoweringOff" | "Paused") => Ok(true),
            Some("Off" | "PoweringOn") => Ok(false),
            other => bail!("the system's PowerState is {other:?}"),
        }
    }

    async fn switch(&self, on: bool) -> anyhow::Result<()> {
        self.reset_to(if on { &["On", "ForceOn"] } else { &["ForceOff"] }).await.map(drop)
    }

    async fn reset(&self) -> anyhow::Result<String> {
        self.reset_to(&["ForceRestart"]).await
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.reset_to(&["Nmi"]).await
    }

    async fn boot_from_network_once(&self) -> anyhow::Result<String> {
        let system = self.system().await?;
        let boot = system.get("Boot").context("the system advertises no boot override")?;
        let allowed = values(boot, "BootSourceOverrideTarget");
        ensure!(
            allowed.is_empty() || allowed.iter().any(|target| target == "Pxe"),
            "the system advertises no boot from the network, only {}",
            allowed.join(", ")
        );
        let change = json!({ "Boot": { "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe" } });
        self.change(&system, &change).await.context("set the boot override")?;
        let now = self.system().await?;
        let set = now.pointer("/Boot/BootSourceOverrideTarget").and_then(Value::as_str);
        ensure!(set == Some("Pxe"), "the boot override was taken, and reads {set:?} afterwards");
        // Not every service knows once.
        match now.pointer("/Boot/BootSourceOverrideEnabled").and_then(Value::as_str) {
            Some("Once") | None => Ok("its next boot is from the network".into()),
            Some("Continuous") => {
                Ok("its boots are from the network, all of them: the service says \"Continuous\"".into())
            }
            other => bail!("the boot override was taken, and is {other:?} afterwards"),
        }
    }

    async fn events(&self) -> anyhow::Result<Option<Vec<String>>> {
        let system = self.system().await?;
        let Some(services) = system.get("LogServices").and_then(link) else { return Ok(None) };
        let request = self.request(Method::GET, &services)?.send().await?;
        // Advertised, and not there: seen.
        if request.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut lines = Vec::new();
        for service in links(&read(request.error_for_status()?).await?) {
            let service = self.get(&service).await?;
            let mut next = service.get("Entries").and_then(link);
            for _ in 0..PAGES {
                let Some(path) = next else { break };
                let page = self.get(&path).await?;
                lines.extend(page.get("Members").and_then(Value::as_array).into_iter().flatten().map(event));
                next = page.get("Members@odata.nextLink").and_then(Value::as_str).map(str::to_owned);
            }
        }
        // The oldest first, whatever order the service has.
        lines.sort();
        // What comes during an attempt is at the end.
        lines.drain(..lines.len().saturating_sub(EVENTS));
        Ok(Some(lines))
    }

    /// The service knows no time after which it ends.
    async fn identify(&self, seconds: u8) -> anyhow::Result<String> {
        let (on, system) = (seconds > 0, self.system().await?);
        // The first is what the newer schemas have in place of the second.
        let (property, value) = if system.get("LocationIndicatorActive").is_some() {
            ("LocationIndicatorActive", json!(on))
        } else if system.get("IndicatorLED").is_some() {
            ("IndicatorLED", json!(if on { "Blinking" } else { "Off" }))
        } else {
            bail!("the system advertises no light");
        };
        self.change(&system, &json!({ property: value })).await.context("switch the light")?;
        let now = self.system().await?;
        ensure!(
            now.get(property) == Some(&value),
            "the change was taken, and {property} reads {:?}",
            now.get(property)
        );
        Ok(if on { "its light is on until somebody ends it (--seconds 0)".into() } else { "its light is off".into() })
    }

    async fn can_nmi(&self) -> anyhow::Result<String> {
        let system = self.system().await?;
        let allowed = system.pointer("/Actions/#ComputerSystem.Reset").map(|action| values(action, "ResetType"));
        ensure!(allowed.unwrap_or_default().iter().any(|kind| kind == "Nmi"), "the system does not advertise Nmi");
        Ok("the system advertises Nmi; whether it sends one, only sending shows".into())
    }
}

/// One entry of a log, as a line.
fn event(entry: &Value) -> String {
    let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("-").replace(['\n', '\r'], " ");
    format!("{} {} {}", field("Created"), field("Severity"), field("Message"))
}
