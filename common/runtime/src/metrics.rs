//! Metrics of a service, and the `/metrics` endpoint.
//!
//! A service counts in atomics or in the counters of a machine, and writes them to a
//! [`MetricWriter`] when they are scraped. Only histograms and metrics with dynamic labels use the
//! library's own types. Names end in their unit; durations are in seconds, sizes in bytes.
//!
//! A label value must never come from data that a client can choose freely.

use std::fmt;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of the older Prometheus text format, for clients that do not accept OpenMetrics.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A histogram of seconds, with buckets from 0.1 ms to about 100 s.
pub fn seconds_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 4.0, 11))
}

/// Writes metrics that are read at the moment of the scrape.
///
/// ```
/// # use flotilla_runtime::metrics::MetricWriter;
/// # use prometheus_client::registry::Registry;
/// let mut registry = Registry::with_prefix("flotilla_peer");
/// registry.register_collector(MetricWriter::collector(|writer| {
///     writer.gauge("neighbours", "Connections to neighbours", 3)?;
///     writer.counters("received_bytes", "Payload received", "source", [("origin", 1), ("zone", 2)])
/// }));
/// ```
pub struct MetricWriter<'e>(DescriptorEncoder<'e>);

impl MetricWriter<'_> {
    /// A collector that calls `read` on each scrape.
    pub fn collector<F>(read: F) -> Box<dyn Collector>
    where
        F: Fn(&mut MetricWriter<'_>) -> fmt::Result + Send + Sync + 'static,
    {
        Box::new(ReadCollector(read))
    }

    /// Writes a counter.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(
            self.0
                .encode_descriptor(name, help, None, counter.metric_type())?,
        )
    }

    /// Writes a counter for each value of a label.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
    ) -> fmt::Result {
        let counters = values
            .into_iter()
            .map(|(value, count)| (value, ConstCounter::new(count)));
        self.family(name, help, MetricType::Counter, label, counters)
    }

    /// Writes a counter for each pair of values of two labels.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn counters_by_two(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; 2],
        values: impl IntoIterator<Item = ([impl AsRef<str>; 2], u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        let [first, second] = labels;
        for ([one, two], count) in values {
            let pair = [(first, one.as_ref()), (second, two.as_ref())];
            let metric = family.encode_family(&pair)?;
            ConstCounter::new(count).encode(metric)?;
        }
        Ok(())
    }

    /// Writes a counter of seconds for each value of a label.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn seconds(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl AsRef<str>, Duration)>,
    ) -> fmt::Result {
        let counters = values
            .into_iter()
            .map(|(value, time)| (value, ConstCounter::new(time.as_secs_f64())));
        self.family(name, help, MetricType::Counter, label, counters)
    }

    /// Writes a gauge.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let gauge = gauge_of(value);
        gauge.encode(
            self.0
                .encode_descriptor(name, help, None, gauge.metric_type())?,
        )
    }

    /// Writes a gauge for each value of a label.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
    ) -> fmt::Result {
        let gauges = values
            .into_iter()
            .map(|(value, number)| (value, gauge_of(number)));
        self.family(name, help, MetricType::Gauge, label, gauges)
    }

    /// Writes one metric for each value of a label.
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        label: &str,
        metrics: impl IntoIterator<Item = (impl AsRef<str>, impl EncodeMetric)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (value, metric) in metrics {
            metric.encode(family.encode_family(&[(label, value.as_ref())])?)?;
        }
        Ok(())
    }
}

fn gauge_of(number: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX))
}

impl fmt::Debug for MetricWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetricWriter").finish()
    }
}

struct ReadCollector<F>(F);

impl<F> fmt::Debug for ReadCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadCollector").finish()
    }
}

impl<F> Collector for ReadCollector<F>
where
    F: Fn(&mut MetricWriter<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut MetricWriter(encoder))
    }
}

/// HTTP requests by route and status, and their time to the response head. Clones share the
/// metrics.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    responses: Family<RequestLabels, Counter>,
    durations: Family<RouteLabel, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let durations = Family::new_with_constructor(seconds_histogram as fn() -> Histogram);
        Self {
            responses: Family::default(),
            durations,
        }
    }
}

impl RequestMetrics {
    /// Adds `http_requests_total` and `http_request_seconds` to a service's registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "HTTP requests by route and status",
            self.responses.clone(),
        );
        registry.register(
            "http_request_seconds",
            "Seconds from the request to the response head",
            self.durations.clone(),
        );
    }

    /// Exports these routes with zero from the start, so that a missing series means a missing
    /// metric.
    pub fn register_routes(&self, routes: &[&'static str]) {
        for route in routes {
            self.of(route, StatusCode::OK);
        }
    }

    /// The metrics of one route and status, for responses too frequent for a lookup each.
    pub fn of(&self, route: &'static str, status: StatusCode) -> RouteMetrics {
        RouteMetrics {
            responses: self.responses.get_or_create_owned(&RequestLabels {
                route,
                code: status.as_u16(),
            }),
            durations: self.durations.get_or_create_owned(&RouteLabel { route }),
        }
    }

    /// Counts a response that took this long.
    pub fn count_response(&self, route: &'static str, status: StatusCode, took: Duration) {
        self.responses
            .get_or_create(&RequestLabels {
                route,
                code: status.as_u16(),
            })
            .inc();
        self.durations
            .get_or_create(&RouteLabel { route })
            .observe(took.as_secs_f64());
    }
}

/// Counts the responses of one route and status.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    responses: Counter,
    durations: Histogram,
}

impl RouteMetrics {
    /// Counts a response that took this long.
    pub fn count_response(&self, took: Duration) {
        self.responses.inc();
        self.durations.observe(took.as_secs_f64());
    }
}

/// The response of `/metrics`: OpenMetrics for clients that accept it, otherwise the older
/// Prometheus text format.
pub fn respond(headers: &HeaderMap, registry: &Registry) -> Response {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        tracing::error!(%error, "encoding metrics failed; /metrics returns 500");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if accepted.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
    } else {
        ([(header::CONTENT_TYPE, PLAIN)], to_prometheus_text(&text)).into_response()
    }
}

/// Converts OpenMetrics to the older Prometheus text format, where the family of a counter is named
/// like its samples, and neither units nor an end marker exist.
fn to_prometheus_text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut lines = open.lines().peekable();
    while let Some(line) = lines.next() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "UNIT", ..] | ["#", "EOF"] => continue,
            ["#", "HELP", name, ..] => {
                let is_counter = lines
                    .peek()
                    .is_some_and(|next| *next == format!("# TYPE {name} counter"));
                let suffix = if is_counter { "_total" } else { "" };
                let help = line.get("# HELP ".len() + name.len()..).unwrap_or_default();
                text.push_str(&format!(
                    "# HELP {name}{suffix}{}",
                    help.trim_end_matches('.')
                ));
            }
            ["#", "TYPE", name, "counter"] => {
                text.push_str(&format!("# TYPE {name}_total counter"))
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::with_prefix("flotilla_test");
        let requests = RequestMetrics::default();
        requests.register(&mut registry);
        requests.count_response("blob", StatusCode::OK, Duration::from_millis(3));
        registry.register_collector(MetricWriter::collector(|writer| {
            writer.gauge("neighbours", "Connections to neighbours", 3)?;
            writer.counters(
                "received_bytes",
                "Payload received",
                "source",
                [("zone", 2)],
            )?;
            writer.seconds(
                "wait_seconds",
                "Waited",
                "reason",
                [("lease", Duration::from_millis(1500))],
            )
        }));
        registry
    }

    async fn text(accept: &'static str) -> (String, String) {
        let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        let answer = respond(&headers, &registry());
        let media_type = answer.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .unwrap();
        (media_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn openmetrics_for_clients_that_accept_it() {
        let (media_type, text) =
            text("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
        assert_eq!(media_type, OPEN_METRICS);
        assert!(
            text.contains("# TYPE flotilla_test_received_bytes counter"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn prometheus_text_for_other_clients() {
        let (media_type, text) = text("*/*").await;
        assert_eq!(media_type, PLAIN);
        for line in [
            "# HELP flotilla_test_received_bytes_total Payload received",
            "# TYPE flotilla_test_received_bytes_total counter",
            "flotilla_test_received_bytes_total{source=\"zone\"} 2",
            "flotilla_test_wait_seconds_total{reason=\"lease\"} 1.5",
            "# TYPE flotilla_test_neighbours gauge",
            "flotilla_test_neighbours 3",
            "flotilla_test_http_requests_total{route=\"blob\",code=\"200\"} 1",
            "# TYPE flotilla_test_http_request_seconds histogram",
        ] {
            assert!(
                text.lines().any(|printed| printed == line),
                "{line} is missing in\n{text}"
            );
        }
        assert!(!text.contains("EOF") && !text.contains("UNIT"), "{text}");
    }
}
