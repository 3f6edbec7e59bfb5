# syntax=docker/dockerfile:1
# The container image of Trunkline.
#
#   docker build --build-arg TRUNKLINE_COMMIT="$(git rev-parse --short HEAD)" -t trunkline .
#
# `deploy/container-steps` follows these steps where no container engine runs; it knows the instructions that are used
# here and refuses any other.

FROM rust:1.95-bookworm AS build
WORKDIR /work

# Dependencies alone, in a layer of their own: it is rebuilt only when the manifest, the lock or the build settings
# change. The sources are empty so far, but every target that the manifest names has to exist.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY crates/core/Cargo.toml crates/core/
COPY crates/simulator/Cargo.toml crates/simulator/
RUN mkdir -p src benches tests/it crates/core/src crates/simulator/src \
    && touch crates/core/src/lib.rs crates/simulator/src/lib.rs \
    && touch src/lib.rs tests/it/main.rs benches/log.rs benches/fanout.rs benches/hot_path.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --profile dist --bin trunkline

# The daemon. Cargo compares times, and a file of the context may be older than its empty stand-in.
COPY crates crates
COPY src src
ARG TRUNKLINE_COMMIT=unknown
RUN touch src/lib.rs src/main.rs crates/core/src/lib.rs crates/simulator/src/lib.rs \
    && TRUNKLINE_COMMIT="$TRUNKLINE_COMMIT" cargo build --locked --profile dist --bin trunkline \
    && mkdir data

# glibc and the certificates of public authorities; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
LABEL org.opencontainers.image.title="trunkline"
LABEL org.opencontainers.image.description="One WebSocket per contact-centre stream, one durable log for every consumer"
LABEL org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /work/target/dist/trunkline /usr/local/bin/trunkline
COPY --from=build --chown=65532:65532 /work/data /data

# A number, so that an orchestrator can see that it is not root.
USER 65532:65532

# The embedded store's default, `data`, lies below the working directory. Nothing else is written: the root file system
# may be read-only. (`demo` and `check --connect` also need a /tmp.)
WORKDIR /
VOLUME /data

# The process alone is asked, through its admin listener on loopback; never Redis or a platform.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/local/bin/trunkline", "status"]

# SIGTERM drains; give it the time for that: docker stop -t 30.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/trunkline"]
CMD ["run", "--config", "/etc/trunkline/trunkline.toml"]
