package interop

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

type statement struct {
	PredicateType string
	Subject       []struct {
		Name   string
		Digest map[string]string
	}
	Predicate json.RawMessage
}

// member decodes a member of nested JSON objects.
func member(t *testing.T, data []byte, path ...string) json.RawMessage {
	t.Helper()
	for _, name := range path {
		var object map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &object), name)
		data = object[name]
	}
	return data
}

// attested exports a build as a layout and returns the index, its image and the statements beside it.
func attested(t *testing.T, opt client.SolveOpt, attrs map[string]string) (ocispecs.Index, ocispecs.Descriptor, []statement) {
	t.Helper()
	ctx, c := daemon(t)
	var out buffer
	opt.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Attrs: attrs, Output: toBuffer(&out)}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	blob := func(d ocispecs.Descriptor) []byte {
		data := files["blobs/sha256/"+d.Digest.Encoded()]
		require.Equal(t, d.Digest, digest.FromBytes(data))
		return data
	}
	var top, index ocispecs.Index
	require.NoError(t, json.Unmarshal(files["index.json"], &top))
	require.Equal(t, ocispecs.MediaTypeImageIndex, top.Manifests[0].MediaType)
	require.NoError(t, json.Unmarshal(blob(top.Manifests[0]), &index))
	require.Len(t, index.Manifests, 2)
	image, beside := index.Manifests[0], index.Manifests[1]
	require.Equal(t, "attestation-manifest", beside.Annotations["vnd.docker.reference.type"])
	require.Equal(t, image.Digest.String(), beside.Annotations["vnd.docker.reference.digest"])
	require.Equal(t, "unknown", beside.Platform.OS)
	var manifest ocispecs.Manifest
	require.NoError(t, json.Unmarshal(blob(beside), &manifest))
	var statements []statement
	for _, layer := range manifest.Layers {
		require.Equal(t, "application/vnd.in-toto+json", layer.MediaType)
		var s statement
		require.NoError(t, json.Unmarshal(blob(layer), &s))
		require.Equal(t, layer.Annotations["in-toto.io/predicate-type"], s.PredicateType)
		statements = append(statements, s)
	}
	return index, image, statements
}

func TestProvenance(t *testing.T) {
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:provenance"] = "mode=max,builder-id=me"
	opt.FrontendAttrs["build-arg:X"] = "secret"
	_, image, statements := attested(t, opt, map[string]string{"name": "interop.example/app:1"})
	require.Len(t, statements, 1)
	s := statements[0]
	require.Equal(t, "https://slsa.dev/provenance/v1", s.PredicateType)
	require.Equal(t, "pkg:docker/interop.example/app@1?platform=linux%2Famd64", s.Subject[0].Name)
	require.Equal(t, image.Digest.Encoded(), s.Subject[0].Digest["sha256"])
	require.JSONEq(t, `"me"`, string(member(t, s.Predicate, "runDetails", "builder", "id")))
	request := member(t, s.Predicate, "buildDefinition", "externalParameters", "request")
	require.JSONEq(t, `"dockerfile.v0"`, string(member(t, request, "frontend")))
	require.JSONEq(t, `{"build-arg:SOURCE_DATE_EPOCH":"1700000000","build-arg:X":"secret"}`, string(member(t, request, "args")))
	require.JSONEq(t, `[{"name":"context"},{"name":"dockerfile"}]`, string(member(t, request, "locals")))
	config := member(t, s.Predicate, "buildDefinition", "internalParameters", "buildConfig")
	var steps []struct {
		ID     string
		Inputs []string
		Op     json.RawMessage
	}
	require.NoError(t, json.Unmarshal(member(t, config, "llbDefinition"), &steps))
	require.NotEmpty(t, steps)
	for i, step := range steps {
		require.Equal(t, "step"+strconv.Itoa(i), step.ID)
	}
	require.JSONEq(t, `{"Op":{}}`, string(steps[len(steps)-1].Op))
	metadata := member(t, s.Predicate, "runDetails", "metadata")
	require.JSONEq(t, `{"request":true,"resolvedDependencies":false}`, string(member(t, metadata, "buildkit_completeness")))
	var infos []struct {
		Filename string
		Data     []byte
	}
	require.NoError(t, json.Unmarshal(member(t, metadata, "buildkit_metadata", "source", "infos"), &infos))
	require.Equal(t, "Dockerfile", infos[0].Filename)
	require.Contains(t, string(infos[0].Data), "FROM scratch")
	var layers map[string][][]ocispecs.Descriptor
	require.NoError(t, json.Unmarshal(member(t, metadata, "buildkit_metadata", "layers"), &layers))
	require.NotEmpty(t, layers)
}

func TestProvenanceMinimal(t *testing.T) {
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:provenance"] = "mode=min,version=v0.2,reproducible=true"
	opt.FrontendAttrs["build-arg:X"] = "secret"
	_, _, statements := attested(t, opt, map[string]string{"oci-artifact": "false"})
	s := statements[0]
	require.Equal(t, "https://slsa.dev/provenance/v0.2", s.PredicateType)
	require.NotContains(t, string(s.Predicate), "secret")
	require.Nil(t, member(t, s.Predicate, "buildConfig"))
	require.JSONEq(t, `true`, string(member(t, s.Predicate, "metadata", "reproducible")))
	require.JSONEq(t, `{"parameters":false,"environment":true,"materials":false}`, string(member(t, s.Predicate, "metadata", "completeness")))
}

func TestProvenanceInlineOnly(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:provenance"] = "mode=min,inline-only=true"
	var out buffer
	opt.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Output: toBuffer(&out)}}
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	layout(t, files)
	require.NoFileExists(t, filepath.Join(dir, "provenance.json"))
	_, _, statements := attested(t, opt, map[string]string{"attestation-inline": "true"})
	require.Len(t, statements, 1)
}

func TestProvenanceOfFiles(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:provenance"] = "mode=min"
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(dir, "provenance.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	var s statement
	require.NoError(t, json.Unmarshal([]byte(read(t, dir, "provenance.json")), &s))
	subjects := map[string]string{}
	for _, subject := range s.Subject {
		subjects[subject.Name] = subject.Digest["sha256"]
	}
	require.Equal(t, digest.FromString("file").Encoded(), subjects["f"])
	require.Contains(t, subjects, "bin/busybox")
}

func TestProvenanceOptions(t *testing.T) {
	ctx, c := daemon(t)
	for options, message := range map[string]string{
		"mode=most":                        `invalid mode "most"`,
		"version=v9":                       "invalid provenance SLSA version: v9",
		"mode=min,complete-materials=true": "provenance materials are incomplete",
		"mode=min,reproducible=perhaps":    "failed to parse reproducible flag",
	} {
		opt := imageBuild(t)
		opt.FrontendAttrs["attest:provenance"] = options
		into(t, &opt)
		_, _, err := solve(ctx, c, opt)
		require.ErrorContains(t, err, message)
	}
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:other"] = ""
	_, _, err := solve(ctx, c, opt)
	require.ErrorContains(t, err, `unknown attestation type "other"`)
}

const scanner = `
FROM base
COPY scan.sh /scan.sh
ENTRYPOINT ["sh", "/scan.sh"]
`

const scan = `set -e
test -d "$BUILDKIT_SCAN_SOURCE"
files=
for f in $(cd "$BUILDKIT_SCAN_SOURCE"; find . -type f | sort); do
  files="$files{\"SPDXID\":\"SPDXRef-$(echo "$f" | tr -cd a-z)\",\"fileName\":\"$f\"},"
done
echo '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{
"SPDXID":"SPDXRef-DOCUMENT","spdxVersion":"SPDX-2.3","dataLicense":"CC0-1.0","name":"'$BUILDKIT_SCAN_WORD'",
"documentNamespace":"http://interop.example","creationInfo":{"created":"2020-01-01T00:00:00Z","creators":["Tool: me"]},
"files":['${files%,}']}}' > "${BUILDKIT_SCAN_DESTINATION}sbom.spdx.json"
`

func TestSBOM(t *testing.T) {
	ctx, c := daemon(t)
	name := registry(t) + "/interop-scanner:1"
	opt := dockerfile(t, scanner, map[string]string{"scan.sh": scan})
	opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true", "registry.insecure": "true"}}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	opt = imageBuild(t)
	opt.FrontendAttrs["attest:sbom"] = "generator=" + name + ",WORD=hey"
	index, image, statements := attested(t, opt, nil)
	require.Len(t, index.Manifests, 2)
	require.NotEqual(t, image.Digest, index.Manifests[1].Digest)
	s := statements[0]
	require.Equal(t, "https://spdx.dev/Document", s.PredicateType)
	require.JSONEq(t, `"hey"`, string(member(t, s.Predicate, "name")))
	var listed []struct{ FileName, Comment string }
	require.NoError(t, json.Unmarshal(member(t, s.Predicate, "files"), &listed))
	found := map[string]string{}
	for _, file := range listed {
		found[file.FileName] = file.Comment
	}
	require.Contains(t, found, "./f")
	require.Contains(t, found["./f"], "layerID: sha256:")
	require.NotEqual(t, found["./f"], found["./bin/busybox"])
	// A graph without a frontend is scanned by the daemon itself.
	root, mounts := tools(t)
	state := client.SolveOpt{LocalMounts: mounts}
	state.FrontendAttrs = map[string]string{"attest:sbom": "generator=" + name}
	dir := into(t, &state)
	_, _, err = solveState(t, ctx, c, root, state)
	require.NoError(t, err)
	require.True(t, bytes.Contains([]byte(read(t, dir, "sbom.spdx.json")), []byte("busybox")))
}
