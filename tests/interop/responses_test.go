package interop

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var (
	anyDigest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	anySize   = regexp.MustCompile(`"size": ?\d+`)
	anyTime   = regexp.MustCompile(`20[2-9]\d-\d\d-\d\dT[\d:.]+Z`)
	epochTime = "2023-11-14T22:13:20Z"
	anyName   = regexp.MustCompile(`127\.0\.0\.1:\d+/golden/app`)
)

// plain replaces what differs from run to run.
func plain(text string) string {
	text = anyDigest.ReplaceAllString(text, "DIGEST")
	text = anySize.ReplaceAllString(text, `"size": 0`)
	text = anyName.ReplaceAllString(text, "REGISTRY/golden/app")
	return anyTime.ReplaceAllStringFunc(text, func(at string) string {
		if at == epochTime {
			return at
		}
		return "TIME"
	})
}

// The answers of exports have the fields of the recorded ones, no more and no less.
func TestResponses(t *testing.T) {
	ctx, c := daemon(t)
	provenance := map[string]string{"attest:provenance": "mode=max"}
	for _, tt := range []struct {
		sample, kind string
		attrs        map[string]string
		options      map[string]string
		push, inline bool
	}{
		{sample: "att", kind: client.ExporterImage, attrs: map[string]string{"name": "app:att"}, options: provenance, push: true},
		{sample: "inline", kind: client.ExporterImage, attrs: map[string]string{"name": "app:inline"}, push: true, inline: true},
		{sample: "dk", kind: client.ExporterDocker, attrs: map[string]string{"name": "golden/app:2"}},
		{sample: "prov1", kind: client.ExporterOCI, options: provenance},
		{sample: "prov02", kind: client.ExporterOCI, options: map[string]string{"attest:provenance": "mode=max,version=v0.2"}},
		{sample: "prov02o", kind: client.ExporterOCI, attrs: map[string]string{"oci-artifact": "false"}, options: provenance},
		{sample: "rt", kind: client.ExporterOCI, attrs: map[string]string{"rewrite-timestamp": "true"}, options: map[string]string{"build-arg:SOURCE_DATE_EPOCH": "1700000000"}},
	} {
		t.Run(tt.sample, func(t *testing.T) {
			recorded, err := os.ReadFile(filepath.Join("..", "golden", "export-samples", "response-"+tt.sample+".json"))
			require.NoError(t, err)
			opt := dockerfile(t, image, map[string]string{"f": "file"})
			for key, value := range tt.options {
				opt.FrontendAttrs[key] = value
			}
			entry := client.ExportEntry{Type: tt.kind, Attrs: map[string]string{}}
			for key, value := range tt.attrs {
				entry.Attrs[key] = value
			}
			if tt.push {
				entry.Attrs["name"] = registry(t) + "/golden/" + entry.Attrs["name"]
				entry.Attrs["push"] = "true"
			} else {
				var out buffer
				entry.Output = toBuffer(&out)
			}
			if tt.inline {
				opt.CacheExports = []client.CacheOptionsEntry{{Type: "inline"}}
			}
			opt.Exports = []client.ExportEntry{entry}
			resp, _, err := solve(ctx, c, opt)
			require.NoError(t, err)
			answer := map[string]any{}
			for key, value := range resp.ExporterResponse {
				answer[key] = value
				if data, err := base64.StdEncoding.DecodeString(value); err == nil && json.Valid(data) {
					answer[key] = json.RawMessage(data)
				}
			}
			data, err := json.Marshal(answer)
			require.NoError(t, err)
			require.JSONEq(t, plain(string(recorded)), plain(string(data)))
		})
	}
}
