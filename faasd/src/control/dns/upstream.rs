//! One question to one upstream.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::core::zone::UDP_PAYLOAD_BYTES_MAX;

/// What is ours in a message with EDNS.
pub(super) fn options(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_version(0);
    edns.set_max_payload(UDP_PAYLOAD_BYTES_MAX);
    edns.set_dnssec_ok(dnssec_ok);
    edns
}

/// The client's question under an identifier of our own.
pub(super) fn message(query: &Message, question: &Query, dnssec_ok: bool) -> Message {
    // `query()` draws the identifier at random; with the kernel's choice of the port it is what a forger must guess.
    let mut message = Message::query();
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    // Whether the upstream has validated is told to those who want to know it (RFC 6840, 5.7).
    message.metadata.authentic_data = true;
    message.queries = vec![question.clone()];
    // Options such as cookies are between two neighbours (RFC 6891, 6.2.6), so the client's are not passed on.
    message.edns = Some(options(dnssec_ok));
    message
}

/// Asks, and once more without EDNS if the upstream knows none.
pub(super) async fn exchange(upstream: SocketAddr, tcp: bool, question: &Message) -> io::Result<Message> {
    let answer = once(upstream, tcp, question).await?;
    let code = answer.metadata.response_code;
    // One that knows EDNS says so in its refusal (RFC 6891, 7).
    let is_old = answer.edns.is_none() && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp);
    if !is_old || question.edns.is_none() {
        return Ok(answer);
    }
    let mut plain = question.clone();
    plain.metadata.id = Message::query().metadata.id;
    plain.edns = None;
    once(upstream, tcp, &plain).await
}

async fn once(upstream: SocketAddr, tcp: bool, question: &Message) -> io::Result<Message> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    match tcp {
        true => over_tcp(upstream, question, &bytes).await,
        false => over_udp(upstream, question, &bytes).await,
    }
}

async fn over_udp(upstream: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any = match upstream {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected, so that the kernel drops what others send and reports what the upstream's host rejects.
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; UDP_PAYLOAD_BYTES_MAX as usize];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // What does not fit may be a forgery; the true answer may still come.
        if let Some(answer) = answer_to(question, &buffer[..len]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, &answer).ok_or_else(|| io::Error::other("the answer does not fit the question"))
}

fn answer_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    // Who cannot read a question, or will not, need not repeat it. Such an answer says nothing of any name.
    let refuses = answer.queries.is_empty()
        && answer.answers.is_empty()
        && answer.authorities.is_empty()
        && !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    let fits = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && (refuses || answer.queries == question.queries);
    fits.then_some(answer)
}
