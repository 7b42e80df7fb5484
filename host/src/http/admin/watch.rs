//! What happens in the host, as an event stream for its operator.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::sleep;

use super::views;
use crate::http::{Body, BodyError, sse};
use crate::shutdown::Begun;
use crate::wasm::{Feed, News, Watcher};

/// The happenings from now on, until the watcher leaves or the host drains.
pub(super) fn happenings(feed: &Arc<Feed>, heartbeat: Duration, drain: Begun) -> Body {
    let watching =
        Watching { watcher: feed.watch(), news: None, heartbeat, drain: Box::pin(drain) };
    let rest = stream::unfold(watching, |mut watching| async {
        watching.next().await.map(|bytes| (bytes, watching))
    });
    // At once, so that who watches knows from when on.
    let bytes = stream::iter([sse::heartbeat()]).chain(rest);
    let frames = bytes.map(|bytes| Ok::<_, BodyError>(Frame::data(bytes)));
    Body::Chunks(UnsyncBoxBody::new(StreamBody::new(frames)))
}

struct Watching {
    watcher: Watcher,
    /// What has come and is not told yet.
    news: Option<Result<News, u64>>,
    heartbeat: Duration,
    drain: Pin<Box<Begun>>,
}

impl Watching {
    /// What goes to the watcher next; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let Self { watcher, news, heartbeat, drain } = self;
        tokio::select! {
            biased;
            () = drain.as_mut() => None,
            news = told(watcher, news) => Some(match news {
                Ok(news) => {
                    let (name, data) = views::event(&news.what);
                    sse::message(name, &data)
                }
                Err(missed) => sse::message("lagged", &format!("{{\"missed\":{missed}}}")),
            }),
            () = sleep(*heartbeat) => Some(sse::heartbeat()),
        }
    }
}

/// The next news, once what they depend on is durable. A call that is dropped has lost nothing.
async fn told(watcher: &mut Watcher, place: &mut Option<Result<News, u64>>) -> Result<News, u64> {
    let news = match place.take() {
        Some(news) => news,
        None => watcher.next().await,
    };
    if let Ok(News { after: Some(ticket), .. }) = &news {
        let ticket = ticket.clone();
        *place = Some(news);
        if ticket.settled().await.is_err() {
            // The journal is dead, and the host about to end.
            pending::<()>().await;
        }
        return place.take().unwrap_or(Err(0));
    }
    news
}
