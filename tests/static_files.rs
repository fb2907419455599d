//! The example `static_files`: what is served, what never is, and what a slow client costs.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, peer};
use common::process::{Running, Scratch, example};
use common::steps::eventually_blocking;

mod common;

each_driver! {
    fn files_are_served_with_their_length_and_type(driver: Driver) {
        let scratch = Scratch::new();
        let root = folder(&scratch);
        let (_server, addr) = start(driver, &root);
        for (path, kind, body) in [
            ("/page.html", "text/html; charset=utf-8", "<p>page"),
            ("/a%20name.css", "text/css; charset=utf-8", "p {}"),
            ("/", "text/html; charset=utf-8", "<p>index"),
            ("/inner/", "text/html; charset=utf-8", "<p>inner"),
            ("/inner", "text/html; charset=utf-8", "<p>inner"),
            ("/link", "application/octet-stream", "within"),
            ("/inner/../page.html?query#part", "text/html; charset=utf-8", "<p>page"),
            ("/empty", "application/octet-stream", ""),
        ] {
            let (head, answered) = ask(addr, "GET", path);
            assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
            assert!(head.contains(&format!("content-type: {kind}\r\n")), "{path}: {head}");
            let length = format!("content-length: {}\r\n", body.len());
            assert!(head.contains(&length), "{path}: {head}");
            assert_eq!(answered, body.as_bytes(), "{path}");
            let (of_head, nothing) = ask(addr, "HEAD", path);
            assert!(of_head.contains(&length) && nothing.is_empty(), "{path}: {of_head}");
        }
        let (head, _) = ask(addr, "POST", "/page.html");
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    }

    fn nothing_outside_of_the_directory_is_served(driver: Driver) {
        let scratch = Scratch::new();
        let root = folder(&scratch);
        let (_server, addr) = start(driver, &root);
        let secret = scratch.path("secret");
        let absolute = secret.to_str().unwrap();
        for path in [
            "/../secret", "/%2e%2e/secret", "/..%2fsecret", "/%2E%2E%2Fsecret",
            "/inner/../../secret", "/inner/%2e%2e/%2e%2e/secret", "//../secret", "/out", "/far",
            "/outside/secret", absolute, &format!("/{absolute}"), &format!("/%2f{absolute}"), "/..",
            "/%2e%2e/", "/page.html/", "/page.html/../../secret", "/missing", "/page.html%00", "/%",
            "/%zz", "/%ff", "/fifo", "/dev/null", "/proc/self/environ", "/..\\secret", "/folder",
        ] {
            for method in ["GET", "HEAD"] {
                let (head, body) = ask(addr, method, path);
                assert!(head.starts_with("HTTP/1.1 404 "), "{method} {path}: {head}");
                assert!(!body.windows(6).any(|bytes| bytes == b"secret"), "{path}");
            }
        }
    }

    fn a_client_that_stops_reading_costs_no_memory_and_holds_nobody_up(driver: Driver) {
        const BYTES: usize = 64 << 20;
        let scratch = Scratch::new();
        let root = folder(&scratch);
        fs::write(root.join("large"), Keyed(3).bytes(0, BYTES)).unwrap();
        let (server, addr) = start(driver, &root);
        let before = resident_bytes(&server);
        let mut stuck = Vec::new();
        for _ in 0..20 {
            let mut stream = peer::connect(addr);
            stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stuck.push(stream);
        }
        let readers: Vec<_> =
            (0..3).map(|_| peer(move || ask(addr, "GET", "/large").1)).collect();
        for reader in readers {
            let body = reader.join();
            assert_eq!(body.len(), BYTES);
            Keyed(3).check(0, &body);
        }
        let grown = resident_bytes(&server).saturating_sub(before);
        assert!(grown < 32 << 20, "the server has grown by {grown} bytes");
        // One of them goes on, the others go away.
        let (_, body) = answer(stuck.pop().unwrap(), Some(BYTES));
        Keyed(3).check(0, &body);
        drop(stuck);
        let none_open = || open_large(&server) == 0;
        eventually_blocking("the file is closed again", none_open);
    }

    fn a_file_that_is_cut_short_breaks_its_connection(driver: Driver) {
        let scratch = Scratch::new();
        let root = folder(&scratch);
        fs::write(root.join("large"), vec![1; 64 << 20]).unwrap();
        let (_server, addr) = start(driver, &root);
        let mut stream = peer::connect(addr);
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        fs::write(root.join("large"), b"").unwrap();
        let mut rest = Vec::new();
        // An end, or a reset, before all has come.
        let _end = stream.read_to_end(&mut rest);
        assert!(rest.len() < 64 << 20);
        assert!(ask(addr, "GET", "/page.html").0.starts_with("HTTP/1.1 200 "));
    }
}

/// A directory with files in it, and a secret beside it.
fn folder(scratch: &Scratch) -> std::path::PathBuf {
    let root = scratch.path("root");
    fs::create_dir_all(root.join("inner")).unwrap();
    fs::create_dir_all(root.join("folder")).unwrap();
    for (path, text) in [
        ("page.html", "<p>page"),
        ("a name.css", "p {}"),
        ("index.html", "<p>index"),
        ("inner/index.html", "<p>inner"),
        ("inner/file", "within"),
        ("empty", ""),
    ] {
        fs::write(root.join(path), text).unwrap();
    }
    fs::write(scratch.path("secret"), "secret").unwrap();
    symlink("inner/file", root.join("link")).unwrap();
    symlink("../secret", root.join("out")).unwrap();
    symlink(scratch.path("secret"), root.join("far")).unwrap();
    symlink("..", root.join("outside")).unwrap();
    let fifo = std::ffi::CString::new(root.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero and lives for the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    root
}

fn start(driver: annulus::Driver, root: &Path) -> (Running, SocketAddr) {
    let mut command = Command::new(example("static_files"));
    command.arg("127.0.0.1:0").arg(root).env("ANNULUS_DRIVER", driver.to_string());
    let mut server = Running::start(command);
    let addr = server.line_after("listening on ").parse().expect("an address");
    (server, addr)
}

/// One request on a connection of its own, with a path that nobody has tidied up: the head of the
/// answer, and its body.
fn ask(addr: SocketAddr, method: &str, path: &str) -> (String, Vec<u8>) {
    let mut stream = peer::connect(addr);
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    answer(stream, None)
}

/// An answer up to its end, or with a body of so many bytes.
fn answer(stream: TcpStream, length: Option<usize>) -> (String, Vec<u8>) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut stream, mut head) = (std::io::BufReader::new(stream), Vec::new());
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let mut body = vec![0; length.unwrap_or(0)];
    match length {
        Some(_) => stream.read_exact(&mut body).unwrap(),
        None => drop(stream.read_to_end(&mut body).unwrap()),
    }
    (String::from_utf8(head).unwrap(), body)
}

/// How often the server has the large file open.
fn open_large(server: &Running) -> usize {
    let links = fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap();
    let targets = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
    targets.filter(|target| target.ends_with("large")).count()
}

/// The memory of the child.
fn resident_bytes(child: &Running) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/statm", child.id())).expect("read statm");
    let pages: usize = text.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a number");
    pages * 4096
}
