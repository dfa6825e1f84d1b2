//! What pods serve, and how it is asked: an echo that tells the client which address the server saw.
//!
//! UDP: a request is 8 bytes, the answer is the same 8 bytes and then the client's address as text.
//! TCP: the first byte of a connection is [`ECHO`] (answer: the client's address as text) or [`SINK`] (all data is read
//! and dropped; answer: the number of bytes as text).

use crate::Result;
use kernel::netns::Netns;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// The port, UDP and TCP, that every pod serves.
pub const PORT: u16 = 7007;
/// First byte of a TCP connection that wants to know its own address.
pub const ECHO: u8 = b'E';
/// First byte of a TCP connection that wants its data counted.
pub const SINK: u8 = b'S';
/// Size of one read or write of the throughput measurement, in bytes.
const CHUNK: usize = 256 << 10;

/// What a socket holds of what nobody has read so far, in bytes.
pub(crate) const QUEUE: usize = 8 << 20;

/// What a client learned from one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// the client's address as the server saw it
    pub seen: IpAddr,
    /// from sending the request to receiving the answer
    pub rtt: Duration,
}

/// Serves both protocols on [`PORT`] of every address of the calling thread's namespace, for ever.
pub fn serve() -> Result<()> {
    let udp = UdpSocket::bind(any()).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
    queue(&udp, QUEUE)?;
    let tcp = TcpListener::bind(any()).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || serve_connection(stream));
        }
    });
    std::thread::spawn(move || serve_datagrams(&udp));
    Ok(())
}

/// Lets a socket hold what comes while the machine has no time for its reader: a loss is one of the path.
pub(crate) fn queue(socket: &UdpSocket, bytes: usize) -> Result<()> {
    // Without root, in a user namespace, as much as everybody may have.
    Ok(setsockopt(socket, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?)
}

/// `[::]` also serves IPv4, unless the kernel has no IPv6.
fn any() -> (Ipv6Addr, u16) {
    (Ipv6Addr::UNSPECIFIED, PORT)
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut request = [0; 8];
    loop {
        // An error here is about an earlier answer (its client is gone): no reason to stop serving.
        let Ok((8, client)) = socket.recv_from(&mut request) else { continue };
        let mut answer = request.to_vec();
        answer.extend(client.ip().to_canonical().to_string().bytes());
        let _ = socket.send_to(&answer, client);
    }
}

fn serve_connection(mut stream: TcpStream) -> Result<()> {
    let client = stream.peer_addr()?.ip().to_canonical();
    let mut wish = [0];
    stream.read_exact(&mut wish)?;
    match wish {
        [ECHO] => stream.write_all(client.to_string().as_bytes())?,
        [SINK] => {
            let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
            stream.write_all(bytes.to_string().as_bytes())?;
        }
        _ => {}
    }
    Ok(())
}

/// Asks `target` by UDP from inside `network`, once, and waits at most `limit`.
pub fn ask(network: &Netns, target: IpAddr, limit: Duration) -> Result<Answer> {
    ask_at(network, SocketAddr::new(target, PORT), limit)
}

/// [`ask`] on another port, that leads to a pod's.
pub fn ask_at(network: &Netns, target: SocketAddr, limit: Duration) -> Result<Answer> {
    network.run(|| {
        let socket = socket_towards(target.ip())?;
        socket.set_read_timeout(Some(limit))?;
        let request = 1u64.to_be_bytes();
        let start = Instant::now();
        socket.send_to(&request, target).map_err(|error| format!("sending to {target}: {error}"))?;
        let mut answer = [0; 64];
        let size =
            socket.recv(&mut answer).map_err(|error| format!("no answer from {target} in {limit:?}: {error}"))?;
        let rtt = start.elapsed();
        let text = answer.get(8..size).ok_or("short answer")?;
        Ok(Answer { seen: std::str::from_utf8(text)?.parse()?, rtt })
    })?
}

/// Asks `target` by TCP from inside `network`; waits at most `limit` for the connection and for the answer.
pub fn ask_tcp(network: &Netns, target: IpAddr, limit: Duration) -> Result<Answer> {
    ask_tcp_at(network, SocketAddr::new(target, PORT), limit)
}

/// [`ask_tcp`] on another port, that leads to a pod's.
pub fn ask_tcp_at(network: &Netns, target: SocketAddr, limit: Duration) -> Result<Answer> {
    network.run(|| {
        let start = Instant::now();
        let mut stream = connect(target, limit)?;
        stream.write_all(&[ECHO])?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Answer { seen: text.parse()?, rtt: start.elapsed() })
    })?
}

/// Sends to `target` by one TCP connection from inside `network` for `duration`; bits per second that arrived.
pub fn throughput(network: &Netns, target: IpAddr, duration: Duration) -> Result<f64> {
    network.run(|| {
        let mut stream = connect(SocketAddr::new(target, PORT), Duration::from_secs(5))?;
        let chunk = vec![0; CHUNK];
        stream.write_all(&[SINK])?;
        let start = Instant::now();
        while start.elapsed() < duration {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let bytes: u32 = u32::try_from(text.parse::<u64>()? >> 10)?;
        Ok(f64::from(bytes) * 8192.0 / start.elapsed().as_secs_f64())
    })?
}

/// A minimal HTTP/1.0 GET from the calling thread's namespace: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    http(address, "GET", path, "")
}

/// The same with POST and a body.
pub fn http_post(address: SocketAddr, path: &str, body: &str) -> Result<(u16, String)> {
    http(address, "POST", path, body)
}

fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .map_err(|error| format!("connecting to {address}{path}: {error}"))?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).ok_or_else(|| format!("not HTTP: {answer:?}"))?.parse()?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default();
    Ok((status, body))
}

fn connect(target: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, limit).map_err(|error| format!("connecting to {target}: {error}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// An unconnected socket of the target's family: it is not told of unreachable ports, so that each loss is a silence.
pub(crate) fn socket_towards(target: IpAddr) -> Result<UdpSocket> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok(UdpSocket::bind((any, 0))?)
}
