//! Provides a container's image: pull policy, credentials, back-off, with kubelet's events and reasons.

use std::sync::LazyLock;
use std::time::Duration;

use k8s_cri::v1::PodSandboxConfig;
use k8s_openapi::api::core::v1::{Container, Pod};
use regex::Regex;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::context::Context;
use crate::events::container_path;
use crate::status::Waiting;
use crate::{Error, pod, pull_secrets};

/// Time for which a pull counts against the limit of simultaneous pulls.
const PERMIT_TIME: Duration = Duration::from_secs(10);

/// Failure to provide an image, with the time of the next try.
#[derive(Debug)]
pub struct ImageUnavailable {
    /// Reason and message for the container's waiting state.
    pub waiting: Waiting,
    /// Time of the next try; `None` if only a change of the pod can help.
    pub retry_at: Option<Instant>,
}

/// Grammar of image references: `[host[:port]/]path[:tag][@digest]`.
static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
    let host = "(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?|\\[[a-fA-F0-9:]+\\](?::[0-9]+)?)";
    let pattern = format!(
        "^(?:{host}/)?{component}(?:/{component})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?\
         (?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?$"
    );
    Regex::new(&pattern).ok()
});

/// Appends `:latest` to a reference without tag and digest; `None` if `image` is not a valid reference.
pub fn with_default_tag(image: &str) -> Option<String> {
    if !REFERENCE.as_ref()?.is_match(image) {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    Some(if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") })
}

/// Ensures that the image is on the node; returns the reference to create the container with.
pub async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &Container,
    sandbox: &PodSandboxConfig,
    backoff: &mut Backoff,
) -> Result<String, ImageUnavailable> {
    let wanted = container.image.as_deref().unwrap_or_default();
    let path = container_path(pod, &container.name);
    let fail = |reason: &str, message: String, retry_at: Option<Instant>| ImageUnavailable {
        waiting: Waiting { reason: reason.to_owned(), message },
        retry_at,
    };
    let Some(image) = with_default_tag(wanted) else {
        let message = format!(
            "Failed to apply default image tag \"{wanted}\": couldn't parse image name \"{wanted}\": invalid reference format"
        );
        context.events.pod_warning(pod, Some(&path), "InspectFailed", message.clone());
        return Err(fail("InvalidImageName", message, None));
    };
    let present = match context.cri.image_status(&image).await {
        Ok(present) => present,
        Err(error) => {
            let message = format!("Failed to inspect image \"{image}\": {error}");
            context.events.pod_warning(pod, Some(&path), "InspectFailed", message.clone());
            return Err(fail("ImageInspectError", message, Some(Instant::now() + Duration::from_secs(10))));
        }
    };
    let default_policy = if image.ends_with(":latest") { "Always" } else { "IfNotPresent" };
    let policy = container.image_pull_policy.as_deref().unwrap_or(default_policy);
    match (policy, present) {
        ("Never" | "IfNotPresent", Some(present)) => {
            let message = format!(
                "Container image \"{wanted}\" already present on machine and can be accessed by the pod"
            );
            context.events.pod_normal(pod, Some(&path), "Pulled", message);
            Ok(present.id)
        }
        ("Never", None) => {
            let message = format!("Container image \"{wanted}\" is not present with pull policy of Never");
            context.events.pod_warning(pod, Some(&path), "ErrImageNeverPull", message.clone());
            Err(fail("ErrImageNeverPull", message, Some(Instant::now() + Duration::from_secs(30))))
        }
        _ => pull(context, pod, container, &image, sandbox, backoff).await,
    }
}

async fn pull(
    context: &Context,
    pod: &Pod,
    container: &Container,
    image: &str,
    sandbox: &PodSandboxConfig,
    backoff: &mut Backoff,
) -> Result<String, ImageUnavailable> {
    let wanted = container.image.as_deref().unwrap_or_default();
    let path = container_path(pod, &container.name);
    if let Some(until) = backoff.waits_since_step(image, Instant::now()) {
        let mut message = format!("Back-off pulling image \"{wanted}\"");
        context.events.pod_normal(pod, Some(&path), "BackOff", message.clone());
        if let Some(error) = backoff.error(image) {
            message = format!("{message}: {error}");
        }
        let waiting = Waiting { reason: "ImagePullBackOff".to_owned(), message };
        return Err(ImageUnavailable { waiting, retry_at: Some(until) });
    }
    context.events.pod_normal(pod, Some(&path), "Pulling", format!("Pulling image \"{wanted}\""));
    let asked = Instant::now();
    let permit = context.pulls.acquire().await;
    let began = Instant::now();
    let pull = pull_with_credentials(context, pod, image, sandbox);
    tokio::pin!(pull);
    // A pull that takes long continues without its permit, so that an unresponsive registry does not block
    // other pulls.
    let outcome = match tokio::time::timeout(PERMIT_TIME, pull.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            drop(permit);
            pull.await
        }
    };
    match outcome {
        Ok(reference) => {
            backoff.reset(image);
            let size = context.cri.image_status(image).await.ok().flatten().map_or(0, |i| i.size);
            let message = format!(
                "Successfully pulled image \"{wanted}\" in {} ({} including waiting). Image size: {size} bytes.",
                seconds(began.elapsed()),
                seconds(asked.elapsed()),
            );
            context.events.pod_normal(pod, Some(&path), "Pulled", message);
            Ok(reference)
        }
        Err(error) => {
            backoff.step(image, Instant::now(), Instant::now());
            let text = pull_error(&error);
            context.events.pod_warning(
                pod,
                Some(&path),
                "Failed",
                format!("Failed to pull image \"{wanted}\": {text}"),
            );
            let waiting = explain(wanted, text);
            backoff.set_error(image, format!("{}: {}", waiting.reason, waiting.message));
            // Retry soon: the error is shown briefly, then the back-off.
            Err(ImageUnavailable { waiting, retry_at: Some(Instant::now() + Duration::from_secs(2)) })
        }
    }
}

/// Formats the error of a failed pull; the uninformative code Unknown is left out, as in kubelet.
fn pull_error(error: &Error) -> String {
    match error {
        Error::Cri { status, .. } if status.code() == tonic::Code::Unknown => error.message(),
        other => other.to_string(),
    }
}

/// Builds the waiting state of a container whose pull failed: CRI marks two kinds of errors by a prefix of
/// the text.
fn explain(image: &str, text: String) -> Waiting {
    let kinds = [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ];
    for (reason, cause) in kinds {
        if let Some(rest) = text.strip_prefix(reason) {
            let message = format!("image pull failed for {image} because {cause}{rest}");
            return Waiting { reason: reason.to_owned(), message };
        }
    }
    Waiting { reason: "ErrImagePull".to_owned(), message: text }
}

async fn pull_with_credentials(
    context: &Context,
    pod: &Pod,
    image: &str,
    sandbox: &PodSandboxConfig,
) -> Result<String, Error> {
    let (credentials, unreadable) = pull_secrets::for_image(pod, image, context.objects.as_ref()).await;
    if !unreadable.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            unreadable.join(", ")
        );
        context.events.pod_warning(pod, None, "FailedToRetrieveImagePullSecret", message);
    }
    let mut last = None;
    for auth in credentials {
        match context.cri.pull_image(image, Some(auth), Some(sandbox.clone())).await {
            Ok(reference) => return Ok(reference),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error),
        None => context.cri.pull_image(image, None, Some(sandbox.clone())).await,
    }
}

/// Formats a duration rounded to milliseconds as Go does: `1.234s` or `56ms`.
fn seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 { format!("{millis}ms") } else { format!("{}s", duration.as_millis() as f64 / 1000.0) }
}

/// Checks `runAsNonRoot` against the user the container will run as: that of the pod's specification, else
/// the image's.
pub async fn verify_non_root(
    context: &Context,
    pod: &Pod,
    container: &Container,
    image: &str,
) -> Result<(), String> {
    let (own, of_pod) = (container.security_context.as_ref(), pod::spec(pod).security_context.as_ref());
    let non_root = own.and_then(|s| s.run_as_non_root).or_else(|| of_pod.and_then(|s| s.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", pod::display(pod), container.name);
    if let Some(user) = own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user)) {
        return if user == 0 {
            Err(format!("container's runAsUser breaks non-root policy {place}"))
        } else {
            Ok(())
        };
    }
    let status = context.cri.image_status(image).await.map_err(|e| e.to_string())?;
    match status.map(|image| (image.uid.map(|u| u.value), image.username)) {
        Some((Some(0), _)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        Some((None, name)) if !name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
        Some((None, _)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_a_default_tag_or_are_refused() {
        assert_eq!(with_default_tag("busybox").as_deref(), Some("busybox:latest"));
        assert_eq!(with_default_tag("reg:5000/a/b").as_deref(), Some("reg:5000/a/b:latest"));
        assert_eq!(with_default_tag("a/b:1").as_deref(), Some("a/b:1"));
        assert!(with_default_tag("Invalid Name").is_none());
        assert!(with_default_tag("").is_none());
        assert!(with_default_tag("a//b").is_none());
    }
}
