//! Answers HTTPS on every core, by rustls and hyper: `tls [ADDR] [CHAIN.pem KEY.pem]`, then
//! `curl -k https://ADDR/ada` or `openssl s_client -connect ADDR`.
//!
//! Speaks HTTP/2 to clients that offer it, and HTTP/1.1. A body that is sent comes back. Without
//! files it makes itself a certificate for `localhost` and prints it, so that a client can be told
//! to trust it. Ctrl-C or SIGTERM stops it: connections have a second to finish.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::hyper::{LocalExecutor, ShardTimer};
use annulus::net::{ListenerGroup, TcpStream};
use annulus::time::timeout;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// For a handshake, after which a client that says nothing is shown out.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

#[annulus::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8443".to_owned());
    let (chain, key) = match (arguments.next(), arguments.next()) {
        (Some(chain), Some(key)) => from_files(&chain, &key)?,
        (None, _) => self_signed()?,
        _ => return Err("usage: tls [ADDR] [CHAIN.pem KEY.pem]".into()),
    };
    let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));

    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());
    // An error is one connection's: its peer has broken off, or does not speak TLS or HTTP.
    group.serve(async move |stream, _peer| attend(&tls, stream).await).await?;
    Ok(())
}

async fn attend(tls: &TlsAcceptor, stream: TcpStream) -> Result<(), Box<dyn Error>> {
    let stream = timeout(HANDSHAKE_TIME, tls.accept(stream)).await??;
    let speaks_http_2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let (stream, service) = (TokioIo::new(stream), service_fn(answer));
    if speaks_http_2 {
        let mut http = http2::Builder::new(LocalExecutor);
        http.timer(ShardTimer).serve_connection(stream, service).await?;
    } else {
        let mut http = http1::Builder::new();
        http.timer(ShardTimer).serve_connection(stream, service).await?;
    }
    Ok(())
}

async fn answer(request: Request<Incoming>) -> hyper::Result<Response<Body>> {
    let body = if request.method() == Method::GET {
        let name = request.uri().path().trim_start_matches('/');
        let name = if name.is_empty() { "world" } else { name };
        Either::Left(Full::from(format!("hello, {name}\n")))
    } else {
        Either::Right(request.into_body())
    };
    Ok(Response::new(body))
}

type Body = Either<Full<Bytes>, Incoming>;
type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn from_files(chain: &str, key: &str) -> Result<Certified, Box<dyn Error>> {
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(key)?))
}

fn self_signed() -> Result<Certified, Box<dyn Error>> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    print!("{}", made.cert.pem());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    Ok((vec![made.cert.der().clone()], key))
}

/// What TLS calls HTTP/2.
const HTTP_2: &[u8] = b"h2";
