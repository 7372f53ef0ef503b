//! The services' descriptions, for clients that ask for them.
//!
//! Decoding them takes longer than the rest of the daemon's start, and few clients ask: it is done
//! for the first one that does.

use std::{
    convert::Infallible,
    sync::OnceLock,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service;

/// One version of the reflection service; both are answered by the same routes.
#[derive(Debug, Clone, Copy)]
pub struct Reflection<const ALPHA: bool>;

impl NamedService for Reflection<false> {
    const NAME: &'static str = "grpc.reflection.v1.ServerReflection";
}

impl NamedService for Reflection<true> {
    const NAME: &'static str = "grpc.reflection.v1alpha.ServerReflection";
}

impl<const ALPHA: bool> Service<http::Request<Body>> for Reflection<ALPHA> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        static ROUTES: OnceLock<Routes> = OnceLock::new();
        let answer = ROUTES.get_or_init(routes).clone().call(request);
        Box::pin(answer)
    }
}

fn routes() -> Routes {
    const VALID: &str = "the compiler of the descriptors made them valid";
    Routes::new(builder().build_v1().expect(VALID))
        .add_service(builder().build_v1alpha().expect(VALID))
}

/// A function, not a closure: rustc 1.95 lets two calls of a closure share one constant argument
/// that the callee changes (rust-lang/rust#155241), and release builds crashed at start.
fn builder() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn descriptors_are_valid() {
        drop(super::routes());
    }
}
