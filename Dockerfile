# The server in a container: docker run --privileged --tmpfs /run -p 6443:6443 dormouse
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY Makefile ./
RUN make deps
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build

FROM debian:bookworm-slim
# nft for Services and host ports, mount for volumes, modprobe and CA certificates as on any node.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates kmod mount nftables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/bin/dormouse /usr/local/bin/dormouse
RUN ln -s dormouse /usr/local/bin/kubectl
COPY LICENSE /usr/share/doc/dormouse/LICENSE
VOLUME ["/var/lib/dormouse", "/var/lib/kubelet", "/var/lib/cni", "/var/log"]
EXPOSE 6443
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/dormouse"]
CMD ["server"]
