package interop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

func toBuffer(b *buffer) func(map[string]string) (io.WriteCloser, error) {
	return func(map[string]string) (io.WriteCloser, error) { return b, nil }
}

func untar(t *testing.T, r io.Reader) (map[string][]byte, []*tar.Header) {
	t.Helper()
	files := map[string][]byte{}
	var headers []*tar.Header
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		require.NoError(t, err)
		data, err := io.ReadAll(tr)
		require.NoError(t, err)
		files[h.Name] = data
		headers = append(headers, h)
	}
}

const image = `
FROM scratch
COPY --from=base /bin/busybox /bin/busybox
COPY f /f
LABEL who=interop
ENV A=b
USER 7
WORKDIR /w
ENTRYPOINT ["/bin/busybox"]
CMD ["sh"]
EXPOSE 80
`

func imageBuild(t *testing.T) client.SolveOpt {
	opt := dockerfile(t, image, map[string]string{"f": "file"})
	opt.FrontendAttrs["build-arg:SOURCE_DATE_EPOCH"] = "1700000000"
	return opt
}

func TestExportTar(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	var out buffer
	opt.Exports = []client.ExportEntry{{Type: client.ExporterTar, Output: toBuffer(&out)}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, headers := untar(t, &out)
	require.Equal(t, "file", string(files["f"]))
	require.Contains(t, files, "bin/busybox")
	for _, h := range headers {
		require.LessOrEqual(t, h.ModTime.Unix(), int64(1700000000), h.Name)
	}
}

// layout checks an OCI layout and returns the image in it.
func layout(t *testing.T, files map[string][]byte) (ocispecs.Manifest, ocispecs.Image) {
	t.Helper()
	require.JSONEq(t, `{"imageLayoutVersion":"1.0.0"}`, string(files["oci-layout"]))
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(files["index.json"], &index))
	require.Len(t, index.Manifests, 1)
	blob := func(d ocispecs.Descriptor) []byte {
		data, ok := files["blobs/sha256/"+d.Digest.Encoded()]
		require.True(t, ok, d.Digest)
		require.Equal(t, d.Digest, digest.FromBytes(data))
		require.Equal(t, d.Size, int64(len(data)))
		return data
	}
	var manifest ocispecs.Manifest
	require.NoError(t, json.Unmarshal(blob(index.Manifests[0]), &manifest))
	var config ocispecs.Image
	require.NoError(t, json.Unmarshal(blob(manifest.Config), &config))
	require.Len(t, config.RootFS.DiffIDs, len(manifest.Layers))
	for _, layer := range manifest.Layers {
		blob(layer)
	}
	return manifest, config
}

func checkConfig(t *testing.T, config ocispecs.Image) {
	t.Helper()
	require.Equal(t, "linux", config.OS)
	require.Equal(t, "interop", config.Config.Labels["who"])
	require.Contains(t, config.Config.Env, "A=b")
	require.Equal(t, "7", config.Config.User)
	require.Equal(t, "/w", config.Config.WorkingDir)
	require.Equal(t, []string{"/bin/busybox"}, config.Config.Entrypoint)
	require.Equal(t, []string{"sh"}, config.Config.Cmd)
	require.Contains(t, config.Config.ExposedPorts, "80/tcp")
	require.Equal(t, int64(1700000000), config.Created.Unix())
	empty := 0
	for _, h := range config.History {
		if h.EmptyLayer {
			empty++
		}
	}
	require.Equal(t, len(config.RootFS.DiffIDs), len(config.History)-empty)
}

func TestExportOCI(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	var out buffer
	opt.Exports = []client.ExportEntry{{
		Type:   client.ExporterOCI,
		Attrs:  map[string]string{"name": "interop.example/app:1"},
		Output: toBuffer(&out),
	}}
	resp, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	manifest, config := layout(t, files)
	checkConfig(t, config)
	require.Equal(t, ocispecs.MediaTypeImageManifest, manifest.MediaType)
	require.Equal(t, ocispecs.MediaTypeImageLayerGzip, manifest.Layers[0].MediaType)

	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(files["index.json"], &index))
	require.Equal(t, "1", index.Manifests[0].Annotations[ocispecs.AnnotationRefName])
	require.Equal(t, "interop.example/app:1", index.Manifests[0].Annotations["io.containerd.image.name"])
	require.Equal(t, index.Manifests[0].Digest.String(), resp.ExporterResponse["containerimage.digest"])
	require.Equal(t, manifest.Config.Digest.String(), resp.ExporterResponse["containerimage.config.digest"])
	require.Equal(t, "interop.example/app:1", resp.ExporterResponse["image.name"])
	data, err := base64.StdEncoding.DecodeString(resp.ExporterResponse["containerimage.descriptor"])
	require.NoError(t, err)
	var desc ocispecs.Descriptor
	require.NoError(t, json.Unmarshal(data, &desc))
	require.Equal(t, index.Manifests[0].Digest, desc.Digest)
}

func TestExportDocker(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	var out buffer
	opt.Exports = []client.ExportEntry{{
		Type:   client.ExporterDocker,
		Attrs:  map[string]string{"name": "app:1"},
		Output: toBuffer(&out),
	}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	_, config := layout(t, files)
	checkConfig(t, config)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	require.NoError(t, json.Unmarshal(files["manifest.json"], &manifest))
	require.Len(t, manifest, 1)
	require.Equal(t, []string{"app:1"}, manifest[0].RepoTags)
	require.Contains(t, files, manifest[0].Config)
	for _, layer := range manifest[0].Layers {
		require.Contains(t, files, layer)
	}
}

func TestExportCompressions(t *testing.T) {
	ctx, c := daemon(t)
	for compression, media := range map[string]string{
		"uncompressed": ocispecs.MediaTypeImageLayer,
		"zstd":         ocispecs.MediaTypeImageLayerZstd,
	} {
		t.Run(compression, func(t *testing.T) {
			opt := imageBuild(t)
			var out buffer
			opt.Exports = []client.ExportEntry{{
				Type:   client.ExporterOCI,
				Attrs:  map[string]string{"compression": compression, "force-compression": "true"},
				Output: toBuffer(&out),
			}}
			_, _, err := solve(ctx, c, opt)
			require.NoError(t, err)
			files, _ := untar(t, &out)
			manifest, config := layout(t, files)
			for i, layer := range manifest.Layers {
				require.Equal(t, media, layer.MediaType)
				if compression == "uncompressed" {
					require.Equal(t, config.RootFS.DiffIDs[i], layer.Digest)
				}
			}
		})
	}
}

func TestExportIsReproducible(t *testing.T) {
	ctx, c := daemon(t)
	var digests []string
	for range 2 {
		opt := imageBuild(t)
		opt.FrontendAttrs["no-cache"] = ""
		var out buffer
		opt.Exports = []client.ExportEntry{{
			Type:   client.ExporterOCI,
			Attrs:  map[string]string{"rewrite-timestamp": "true"},
			Output: toBuffer(&out),
		}}
		resp, _, err := solve(ctx, c, opt)
		require.NoError(t, err)
		digests = append(digests, resp.ExporterResponse["containerimage.digest"])
	}
	require.Equal(t, digests[0], digests[1])
}

func TestExportStore(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	dir := t.TempDir()
	opt.Exports = []client.ExportEntry{{
		Type:      client.ExporterOCI,
		Attrs:     map[string]string{"tar": "false", "name": "app:1"},
		OutputDir: dir,
	}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files := map[string][]byte{}
	for _, path := range list(t, dir) {
		if data, err := os.ReadFile(filepath.Join(dir, path)); err == nil {
			files[path] = data
		}
	}
	_, config := layout(t, files)
	checkConfig(t, config)
}

func TestExportImage(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	opt.Exports = []client.ExportEntry{{
		Type:  client.ExporterImage,
		Attrs: map[string]string{"name": "docker.io/library/interop:" + unique()},
	}}
	resp, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Contains(t, resp.ExporterResponse["containerimage.digest"], "sha256:")
	require.Contains(t, resp.ExporterResponse["containerimage.config.digest"], "sha256:")
	require.Equal(t, opt.Exports[0].Attrs["name"], resp.ExporterResponse["image.name"])
	v := r.named(t, "exporting to image")
	var ids []string
	for _, s := range r.statuses {
		if s.Vertex == v.Digest {
			ids = append(ids, s.ID)
		}
	}
	require.Contains(t, ids, "exporting layers")
}

func TestSeveralExporters(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	dir := into(t, &opt)
	var out buffer
	opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterTar, Output: toBuffer(&out)})
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "file", read(t, dir, "f"))
	files, _ := untar(t, &out)
	require.Equal(t, "file", string(files["f"]))
}

func TestLocalExportModes(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	dir := into(t, &opt)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "before"), []byte("b"), 0o644))
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "b", read(t, dir, "before"), "copying keeps other files")
	fi, err := os.Stat(filepath.Join(dir, "bin/busybox"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), fi.Mode().Perm())

	opt = imageBuild(t)
	opt.Exports = []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dir, Attrs: map[string]string{"mode": "delete"}}}
	_, _, err = solve(ctx, c, opt)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(dir, "before"))
	require.Equal(t, "file", read(t, dir, "f"))
}

// TestImageFromLayout builds on an image that the client serves from an OCI layout.
func TestImageFromLayout(t *testing.T) {
	ctx, c := daemon(t)
	store, dgst := storedImage(t, ctx, c)
	opt := fromDir(t, tree(t, map[string]string{
		"Dockerfile": "FROM parent\nUSER 0\nRUN [\"/bin/busybox\", \"cp\", \"/f\", \"/g\"]\n",
	}))
	opt.OCIStores = map[string]content.Store{"store": store}
	opt.FrontendAttrs["context:parent"] = "oci-layout://store@" + dgst
	dir := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "file", read(t, dir, "g"))
	r.named(t, "load metadata for")
}

func storedImage(t *testing.T, ctx context.Context, c *client.Client) (content.Store, string) {
	t.Helper()
	opt := imageBuild(t)
	dir := t.TempDir()
	opt.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"tar": "false"}, OutputDir: dir}}
	resp, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	store, err := local.NewStore(dir)
	require.NoError(t, err)
	return store, resp.ExporterResponse["containerimage.digest"]
}

// gunzipNames lists the entries of a layer.
func gunzipNames(t *testing.T, blob []byte) []string {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(blob))
	require.NoError(t, err)
	_, headers := untar(t, gz)
	var names []string
	for _, h := range headers {
		names = append(names, strings.TrimSuffix(h.Name, "/"))
	}
	return names
}
