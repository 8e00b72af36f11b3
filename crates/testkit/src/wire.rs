//! HTTP without a network: requests go straight into the server's router, over a wire that loses and repeats.
//!
//! Faults come from a seeded generator and nothing else, so that a failing run is repeated by its seed.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use crashyard_protocol::agent::EPOCH_HEADER;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Serialize, de::DeserializeOwned};
use tower::ServiceExt as _;

/// The server's answer did not arrive; whether the request did is unknown, as on a real network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// An answer that arrived.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; panics, naming the body, if it is something else.
    ///
    /// # Panics
    /// If the body is not the expected JSON: that is a bug in the server, and this is a test.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error} in the answer {} {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }
}

/// A way to one server that may be replaced (restarted) at any time.
pub struct Wire {
    router: Router,
    faults: SmallRng,
    /// Of 100 requests, how many are lost on the way there, lost on the way back, and delivered twice: each.
    fault_percent: u32,
}

impl Wire {
    /// A wire to `router`; of 100 requests, `fault_percent` each are lost, half-lost and repeated.
    #[must_use]
    pub fn new(router: Router, seed: u64, fault_percent: u32) -> Self {
        Self { router, faults: SmallRng::seed_from_u64(seed), fault_percent }
    }

    /// The server was restarted: requests go to another router from now on.
    pub fn reconnect(&mut self, router: Router) {
        self.router = router;
    }

    /// Sends one request with a bearer token and, inside an attempt, a lease epoch.
    ///
    /// # Errors
    /// [`Lost`] if the request or its answer was lost.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        token: &str,
        epoch: Option<u64>,
        body: Bytes,
    ) -> Result<Answer, Lost> {
        let fault = self.faults.random_range(0..100);
        if fault < self.fault_percent {
            return Err(Lost);
        }
        let answer = self.deliver(&method, path, token, epoch, &body).await;
        if fault < 2 * self.fault_percent {
            return Err(Lost);
        }
        if fault < 3 * self.fault_percent {
            return Ok(self.deliver(&method, path, token, epoch, &body).await);
        }
        Ok(answer)
    }

    /// [`Wire::call`] with a JSON body.
    ///
    /// # Errors
    /// [`Lost`] if the request or its answer was lost.
    pub async fn post(
        &mut self,
        path: &str,
        token: &str,
        epoch: Option<u64>,
        body: &impl Serialize,
    ) -> Result<Answer, Lost> {
        let body = serde_json::to_vec(body).expect("wire types serialise");
        self.call(Method::POST, path, token, epoch, body.into()).await
    }

    async fn deliver(&self, method: &Method, path: &str, token: &str, epoch: Option<u64>, body: &Bytes) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        if let Some(epoch) = epoch {
            request = request.header(EPOCH_HEADER, epoch);
        }
        let request = request.body(Body::from(body.clone())).expect("a well-formed request");
        let response = self.router.clone().oneshot(request).await.expect("a router answers everything");
        let status = response.status();
        let body = to_bytes(response.into_body(), 64 << 20).await.unwrap_or_default();
        Answer { status, body }
    }
}
