//! `bureau check`: whether the data directory of a host that is down is consistent, without a host.

use std::path::Path;

use anyhow::Context as _;
use bureau::host;
use bureau::journal::{Counts, Report};
use serde_json::json;

use super::output::{Output, clean, size};

/// Checks a data directory, and says what is in it and what is wrong. One that is not consistent is an error.
pub fn check(data: &Path, output: &Output) -> anyhow::Result<()> {
    let report = host::check(data).with_context(|| format!("cannot check {}", data.display()))?;
    let Report { counts, violations, more, .. } = &report;
    let document = json!({
        "consistent": report.is_consistent(),
        "counts": counts,
        "violations": violations,
        "more_violations": more,
    });
    output.say(&document, || Ok(text(&report)))?;
    match violations.len() as u64 + more {
        0 => Ok(()),
        1 => anyhow::bail!("{} is not consistent: there is a violation", data.display()),
        all => anyhow::bail!("{} is not consistent: there are {all} violations", data.display()),
    }
}

fn text(report: &Report) -> String {
    let &Counts { event_bytes, file_bytes, unfinished, .. } = &report.counts;
    let counts = &report.counts;
    let mut lines = vec![
        format!("runs         {} ({unfinished} not over)", counts.runs),
        format!("events       {}, {}", counts.events, size(event_bytes)),
        format!("ids          {}", counts.ids),
        format!("instances    {}", counts.instances),
        format!("documents    {}", counts.documents),
        format!("values       {}", counts.values),
        format!("deployments  {}", counts.deployments),
        format!("files        {}, {} records in the log", size(file_bytes), counts.log_records),
    ];
    for violation in &report.violations {
        lines.push(format!("{} {}: {}", violation.place, violation.key, violation.what));
    }
    if report.more > 0 {
        lines.push(format!("and {} more", report.more));
    }
    let consistent = if report.is_consistent() { "yes" } else { "no" };
    lines.push(format!("consistent   {consistent}"));
    clean(&lines.join("\n")).into_owned()
}
