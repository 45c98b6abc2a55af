//! CRI's ImageService, and `ephor.image.v1.Images` for the `ephor image` commands.

use std::io::Write;
use std::pin::Pin;

use futures::Stream;
use k8s_cri::v1;
use k8s_cri::v1::image_service_server::ImageService;
use proto_wire::image as wire;
use proto_wire::image::images_server::Images;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, internal};
use crate::image::{Image, ImageError, PullProgress, Reference, RegistryCredentials};

/// Maximum number of progress messages queued for a client.
const PROGRESS: usize = 64;

fn status(error: ImageError) -> Status {
    let text = crate::files::chain(&error);
    match error {
        ImageError::NotFound(_) => Status::not_found(text),
        ImageError::Reference(_) | ImageError::Invalid(_) => Status::invalid_argument(text),
        ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. } => Status::data_loss(text),
        ImageError::TooLarge(_) => Status::resource_exhausted(text),
        ImageError::Pull { .. } => Status::unknown(text),
        ImageError::Io(_) | ImageError::Task(_) => Status::internal(text),
    }
}

fn cri_image(image: Image) -> v1::Image {
    let user = image.config.config.as_ref().and_then(|c| c.user.clone()).unwrap_or_default();
    let name = user.split(':').next().unwrap_or_default().to_owned();
    let uid = name.parse::<i64>().ok();
    v1::Image {
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { name },
        id: image.id,
        repo_tags: image.references,
        repo_digests: image.digests,
        size: image.size,
        spec: None,
        pinned: false,
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let wanted =
            request.into_inner().filter.and_then(|f| f.image).map(|i| i.image).filter(|i| !i.is_empty());
        let images = match wanted {
            Some(name) => self.images.find(&name).into_iter().collect(),
            None => self.images.list(),
        };
        Ok(Response::new(v1::ListImagesResponse { images: images.into_iter().map(cri_image).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let found = self.images.find(&name);
        let mut info = std::collections::HashMap::new();
        if let (Some(image), true) = (&found, request.verbose) {
            let text = serde_json::json!({ "chainIDs": image.layers, "imageSpec": image.config }).to_string();
            info.insert("info".to_owned(), text);
        }
        Ok(Response::new(v1::ImageStatusResponse { image: found.map(cri_image), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let reference: Reference = name.parse().map_err(|e| status(ImageError::Reference(e)))?;
        let auth = request.auth.unwrap_or_default();
        let credentials =
            RegistryCredentials::from_parts(&auth.username, &auth.password, &auth.auth, &auth.registry_token);
        let image = self.images.pull(&reference, credentials, None).await.map_err(status)?;
        tracing::info!(image = %reference, id = image.id, "image pulled");
        Ok(Response::new(v1::PullImageResponse { image_ref: image.id }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.images.remove(&name, || self.layers_in_use()).await.map_err(status)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        self.filesystem_info().await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Images for Service {
    async fn load(
        &self,
        request: Request<Streaming<wire::LoadRequest>>,
    ) -> Result<Response<wire::LoadResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut spool = self.images.spool().map_err(internal("failed to store the archive"))?;
        let budget = self.images.spool_budget().map_err(internal("failed to store the archive"))?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            budget.take(chunk.data.len() as u64).map_err(|e| status(e.into()))?;
            spool.write_all(&chunk.data).map_err(internal("failed to store the archive"))?;
        }
        let archive = spool.reopen().map_err(internal("failed to store the archive"))?;
        let references = self.images.load(archive).await.map_err(status)?;
        tracing::info!(?references, "images loaded");
        Ok(Response::new(wire::LoadResponse { references }))
    }

    async fn list(&self, _: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let images = self.images.list().into_iter().map(|image| wire::Image {
            references: image.references,
            id: image.id,
            size_bytes: image.size,
            digests: image.digests,
        });
        Ok(Response::new(wire::ListResponse { images: images.collect() }))
    }

    type PullStream = Pin<Box<dyn Stream<Item = Result<wire::PullProgress, Status>> + Send>>;

    async fn pull(&self, request: Request<wire::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let reference: Reference =
            request.into_inner().reference.parse().map_err(|e| status(ImageError::Reference(e)))?;
        let (progress, mut steps) = mpsc::channel::<PullProgress>(PROGRESS);
        let (sender, receiver) = mpsc::channel(PROGRESS);
        let images = self.images.clone();
        let pulling = tokio::spawn(async move {
            images.pull(&reference, RegistryCredentials::Anonymous, Some(progress)).await
        });
        tokio::spawn(async move {
            while let Some(PullProgress { layer, done, total }) = steps.recv().await {
                let step =
                    wire::PullProgress { layer, done_bytes: done, total_bytes: total, id: String::new() };
                if sender.send(Ok(step)).await.is_err() {
                    // The client has disconnected.
                    return pulling.abort();
                }
            }
            let last = match pulling.await {
                Ok(Ok(image)) => Ok(wire::PullProgress { id: image.id, ..Default::default() }),
                Ok(Err(error)) => Err(status(error)),
                Err(error) => Err(internal("pull")(error)),
            };
            // Sending fails only if the client has disconnected.
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
