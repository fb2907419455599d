//! Serves the files of a directory by HTTP on every core: `static_files [ADDR] [DIRECTORY]`.
//!
//! Nothing outside of the directory is served, by whatever path it is asked for: the kernel walks
//! each path from the directory on and refuses to leave it (`RESOLVE_BENEATH`). Symbolic links that
//! stay within are followed, those that lead out are not found. Needs Linux 5.6.
//!
//! A file is sent in pieces of 64 KiB, read as the connection has room for them. Ranges and times
//! of change are not spoken of.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::fs::{File, OpenError, OpenOptions};
use annulus::hyper::ShardTimer;
use annulus::net::ListenerGroup;
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};

const PIECE_BYTES: u64 = 64 * 1024;

type Reading = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>>>>;
type Answer = Response<Either<Full<Bytes>, Pieces>>;

#[annulus::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let root = Arc::new(File::open(arguments.next().unwrap_or_else(|| ".".to_owned())).await?);
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());

    let mut http = http1::Builder::new();
    // The timer is for peers that never finish their request's head. No `pipeline_flush`: with it
    // hyper takes all of a body, however slowly its reader reads.
    http.timer(ShardTimer);
    let serve = async move |stream, _peer| {
        let service = service_fn(|request| answer(&root, request));
        // An error is one connection's: its peer has broken off, or does not speak HTTP.
        http.serve_connection(stream, service).await
    };
    group.serve(serve).await
}

async fn answer(root: &File, request: Request<Incoming>) -> hyper::http::Result<Answer> {
    let (method, path) = (request.method(), request.uri().path());
    if method != Method::GET && method != Method::HEAD {
        let refusal = Response::builder().status(StatusCode::METHOD_NOT_ALLOWED);
        return refusal.header(ALLOW, "GET, HEAD").body(text("only GET and HEAD are answered\n"));
    }
    let (file, length, kind) = match find(root, path).await {
        Ok(found) => found,
        Err(error) => return refuse(path, &error),
    };
    let body = match *method == Method::HEAD {
        true => text(""),
        false => Either::Right(Pieces { file: Rc::new(file), at: 0, end: length, reading: None }),
    };
    Response::builder().header(CONTENT_TYPE, kind).header(CONTENT_LENGTH, length).body(body)
}

/// The file that a path stands for, how long it is, and what it seems to contain.
async fn find(root: &File, path: &str) -> io::Result<(File, u64, &'static str)> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let path = decoded(path).ok_or_else(missing)?;
    let mut path = format!("./{}", path.trim_start_matches('/'));
    let reading = OpenOptions::new().read(true);
    let mut file = reading.open_beneath(root, &path).await?;
    let mut metadata = file.metadata().await?;
    if metadata.is_dir() {
        path.push_str("/index.html");
        file = reading.open_beneath(root, &path).await?;
        metadata = file.metadata().await?;
    }
    // No FIFO, no device, and no file by the name of a directory.
    if !metadata.is_file() || path.ends_with('/') {
        return Err(missing());
    }
    Ok((file, metadata.len(), content_type(&path)))
}

fn refuse(path: &str, error: &io::Error) -> hyper::http::Result<Answer> {
    let opening = error.get_ref().and_then(|inner| inner.downcast_ref::<OpenError>());
    let errno = opening.map_or(error.raw_os_error(), OpenError::raw_os_error);
    // Not found, or not to be had, are all the same to who asks. The rest is the server's fault.
    if matches!(errno, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EIO | libc::ENOSYS))
    {
        eprintln!("{path}: {error}");
        let fault = Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR);
        return fault.body(text("this cannot be served now\n"));
    }
    Response::builder().status(StatusCode::NOT_FOUND).body(text("there is no such file\n"))
}

/// A path without its `%XX`.
fn decoded(path: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                u8::from_str_radix(std::str::from_utf8(&[*high, *low]).ok()?, 16).ok()?
            }
            (b'%', _) => return None,
            _ => *first,
        });
    }
    String::from_utf8(bytes).ok()
}

fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "mp4" => "video/mp4",
        _ => "application/octet-stream",
    }
}

fn text(text: &'static str) -> Either<Full<Bytes>, Pieces> {
    Either::Left(Full::from(text))
}

/// A file as the body of an answer: one piece at a time.
struct Pieces {
    file: Rc<File>,
    at: u64,
    end: u64,
    reading: Option<Reading>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let (at, left) = (self.at, self.end - self.at);
        if left == 0 {
            return Poll::Ready(None);
        }
        let file = Rc::clone(&self.file);
        let reading = self.reading.get_or_insert_with(|| {
            let buffer = Vec::with_capacity(left.min(PIECE_BYTES) as usize);
            Box::pin(async move { Ok(file.read_at(buffer, at).await?.1) })
        });
        let piece = ready!(reading.as_mut().poll(cx))?;
        if piece.is_empty() {
            // The length is promised. Who has been told of it must see the connection break.
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        self.reading = None;
        self.at += piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}
