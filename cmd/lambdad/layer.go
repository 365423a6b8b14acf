package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/image"
	lambdaservice "github.com/lambdad/lambdad/service/lambda"
)

// layerCommand imports layers that were published elsewhere.
func layerCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "layer")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	arn := fs.String("arn", "", "`ARN` that a zip, a directory or an image gets, with its version")
	var src imageSource
	fs.StringVar(&src.Ref, "image", "", "`reference` of an image in a registry whose /opt is the layer")
	fs.StringVar(&src.OCI, "oci", "", "`directory` with such an image as an OCI layout")
	fs.StringVar(&src.Tar, "tar", "", "`file` with such an image, as docker save or an OCI archive has it")
	fs.StringVar(&src.Tag, "tag", "", "`tag` of the image where --oci or --tar hold several")
	from := layerOrigin{}
	fs.StringVar(&from.profile, "profile", "", "`name` in the AWS configuration whose credentials fetch an ARN (default: as the AWS CLI finds them)")
	fs.StringVar(&from.endpoint, "endpoint", "", "`URL` of the Lambda API that an ARN is fetched from (default: AWS)")
	replace := fs.Bool("replace", false, "replace the version if it is here with another content")
	output := fs.String("output", "text", "`form`: text or json")
	rest, err := parse(fs, args, 1, 2)
	if err != nil {
		return err
	}
	bad := func(text string) error {
		fmt.Fprintln(std.err, "lambdad layer: "+text)
		return errUsage
	}
	if rest[0] != "import" {
		return bad("it is import, with the ARN of a layer version, a zip or a directory")
	}
	if *output != "text" && *output != "json" {
		return bad(fmt.Sprintf("--output %q: it must be text or json", *output))
	}
	if src.given() == (len(rest) == 2) {
		return bad("import takes one source: an ARN, a zip, a directory, or an image by --image, --oci or --tar")
	}
	order := layerOrder{ARN: *arn, Replace: *replace}
	var pack *os.File
	switch {
	case src.given():
		if err := src.check(); err != nil {
			return err
		}
		pack, err = layerOfImage(ctx, src)
	case strings.HasPrefix(rest[1], "arn:"):
		if *arn != "" && *arn != rest[1] {
			return bad("an ARN keeps its name: leave out --arn")
		}
		order.ARN = rest[1]
		if err := from.checkSelf(*dataDir); err != nil {
			return err
		}
		pack, err = from.fetch(ctx, &order)
	default:
		pack, err = layerOfPath(ctx, rest[1])
	}
	if err != nil {
		return err
	}
	defer pack.Close()
	if order.ARN == "" {
		return bad("--arn is missing: the layer needs the ARN that functions name it by, with its version")
	}
	got, err := sendLayer(ctx, *dataDir, order, pack)
	if err != nil {
		return err
	}
	if *output == "json" {
		return json.NewEncoder(std.out).Encode(got)
	}
	for _, w := range got.Warnings {
		fmt.Fprintf(std.err, "warning: %s\n", w)
	}
	fmt.Fprintf(std.out, "%s: %d files, %d bytes, %d unzipped\n", got.ARN, got.Files, got.Size, got.Unzipped)
	return nil
}

// A layerOrder is what the command tells a running server about a layer, whose zip
// follows.
type layerOrder struct {
	ARN           string   `json:"arn"`
	Description   string   `json:"description,omitempty"`
	License       string   `json:"license,omitempty"`
	Runtimes      []string `json:"runtimes,omitempty"`
	Architectures []string `json:"architectures,omitempty"`
	Replace       bool     `json:"replace,omitempty"`
}

func (o layerOrder) of(f *os.File) (in lambdaservice.LayerImport, err error) {
	info, err := f.Stat()
	if err != nil {
		return in, err
	}
	return lambdaservice.LayerImport{ARN: o.ARN, Package: f, Size: info.Size(), Description: o.Description, License: o.License,
		Runtimes: o.Runtimes, Architectures: o.Architectures, Replace: o.Replace}, nil
}

// nameless makes a file that is gone when it is closed.
func nameless() (*os.File, error) {
	f, err := os.CreateTemp("", "lambdad-layer-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// packed makes a file of what write writes.
func packed(write func(io.Writer) error) (_ *os.File, err error) {
	f, err := nameless()
	if err != nil {
		return nil, err
	}
	if err := write(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// layerOfPath is the layer in a directory or zip.
func layerOfPath(ctx context.Context, path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return packed(func(w io.Writer) error { return archive.FromDir(ctx, path, w) })
	}
	return os.Open(path)
}

// layerOfImage is what an image has in /opt.
func layerOfImage(ctx context.Context, src imageSource) (_ *os.File, err error) {
	scratch, err := scratchDir("lambdad-layer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	blobs, err := files.Open(files.Config{Dir: filepath.Join(scratch, "blobs")})
	if err != nil {
		return nil, err
	}
	images := image.New(image.Config{Dir: filepath.Join(scratch, "layers"), Blobs: blobs})
	img, release, err := src.store(ctx, images)
	if err != nil {
		return nil, err
	}
	defer release()
	return packed(func(w io.Writer) error {
		n, err := images.Extract(ctx, img, "opt", w)
		if err == nil && n == 0 {
			err = fmt.Errorf("the image %s has no files in /opt, which is what a layer is made of", src)
		}
		return plainly(err)
	})
}

// store gets the image without making it ready to run.
func (s imageSource) store(ctx context.Context, images *image.Store) (*lambdad.Image, func(), error) {
	return s.get(ctx, images, nil, func(img *lambdad.Image, resolved string) error { return images.Fetch(ctx, img, resolved) })
}

// A layerOrigin is the AWS that layers are fetched from.
type layerOrigin struct{ profile, endpoint string }

// checkSelf refuses to ask the server for what it does not have: a shell in which
// `lambdad env` was evaluated means it by AWS.
func (o layerOrigin) checkSelf(dataDir string) error {
	if o.endpoint != "" {
		return nil
	}
	for _, name := range []string{"AWS_ENDPOINT_URL_LAMBDA", "AWS_ENDPOINT_URL"} {
		value := os.Getenv(name)
		if value == "" {
			continue
		}
		if s, err := datadir.Lookup(dataDir); err == nil && strings.TrimSuffix(value, "/") == s.Endpoint {
			return fmt.Errorf("%s points at this lambdad (%s), which has not got the layer: run the command in a shell without lambdad env, with the credentials of the AWS account, or give --profile and --endpoint", name, value)
		}
		return nil
	}
	return nil
}

var layerARN = regexp.MustCompile(`^arn:[a-zA-Z0-9-]+:lambda:([a-zA-Z0-9-]+):\d{12}:layer:[a-zA-Z0-9-_]+:[0-9]+$`)

// fetch downloads a layer version by its ARN and fills in what AWS says about it.
func (o layerOrigin) fetch(ctx context.Context, order *layerOrder) (*os.File, error) {
	m := layerARN.FindStringSubmatch(order.ARN)
	if m == nil {
		return nil, fmt.Errorf("%.200q is not the ARN of a layer version, such as arn:aws:lambda:us-east-1:123456789012:layer:name:1", order.ARN)
	}
	opts := []func(*awsconfig.LoadOptions) error{awsconfig.WithRegion(m[1])}
	if o.profile != "" {
		opts = append(opts, awsconfig.WithSharedConfigProfile(o.profile))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("reading the AWS configuration: %w", err)
	}
	client := lambda.NewFromConfig(cfg, func(opt *lambda.Options) {
		if o.endpoint != "" {
			opt.BaseEndpoint = &o.endpoint
		}
	})
	out, err := client.GetLayerVersionByArn(ctx, &lambda.GetLayerVersionByArnInput{Arn: &order.ARN})
	if err != nil {
		return nil, fmt.Errorf("asking AWS for the layer (it must be public or shared with the account of the credentials): %w", err)
	}
	if out.Content == nil || out.Content.Location == nil {
		return nil, errors.New("AWS named no place to download the layer from")
	}
	for _, r := range out.CompatibleRuntimes {
		order.Runtimes = append(order.Runtimes, string(r))
	}
	for _, a := range out.CompatibleArchitectures {
		order.Architectures = append(order.Architectures, string(a))
	}
	if out.Description != nil {
		order.Description = *out.Description
	}
	if out.LicenseInfo != nil {
		order.License = *out.LicenseInfo
	}
	return download(ctx, *out.Content.Location)
}

// maxDownload is the largest zip of a layer: one cannot be larger than what it holds,
// beside its directory.
const maxDownload = lambdad.MaxUnzipped + 16<<20

// download gets a file. A server that is silent for half a minute is given up.
func download(ctx context.Context, location string) (*os.File, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	const stall = 30 * time.Second
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing came for %v", stall)) })
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		// Without the location, which is a secret for as long as it works.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("downloading the layer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("downloading the layer: the server answered %s", resp.Status)
	}
	return packed(func(w io.Writer) error {
		buf := make([]byte, 128<<10)
		for n := int64(0); ; {
			m, err := resp.Body.Read(buf)
			watch.Reset(stall)
			if n += int64(m); n > maxDownload {
				return fmt.Errorf("downloading the layer: it has more than %d bytes", int64(maxDownload))
			}
			if _, err := w.Write(buf[:m]); err != nil {
				return err
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return fmt.Errorf("downloading the layer: %w", errors.Join(err, context.Cause(ctx)))
			}
		}
	})
}

// pullLayer is what a server does about an unknown ARN of a function.
func pullLayer(ctx context.Context, api *lambdaservice.Service, endpoint, arn string) (*lambdaservice.ImportedLayer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	order := layerOrder{ARN: arn}
	f, err := layerOrigin{endpoint: endpoint}.fetch(ctx, &order)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, err := order.of(f)
	if err != nil {
		return nil, err
	}
	return api.ImportLayer(ctx, in)
}

// layerHeader carries a layerOrder beside its zip.
const layerHeader = "X-Lambdad-Layer"

// serveLayers takes layers on the control socket.
func serveLayers(api *lambdaservice.Service) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got, err := takeLayer(r, api)
		if err != nil {
			http.Error(w, plainly(err).Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(got) // the reader left
	}
}

func takeLayer(r *http.Request, api *lambdaservice.Service) (*lambdaservice.ImportedLayer, error) {
	var order layerOrder
	if err := json.Unmarshal([]byte(r.Header.Get(layerHeader)), &order); err != nil {
		return nil, err
	}
	f, err := packed(func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(r.Body, maxDownload+1))
		if err == nil && n > maxDownload {
			err = fmt.Errorf("the layer has more than %d bytes", int64(maxDownload))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, err := order.of(f)
	if err != nil {
		return nil, err
	}
	return api.ImportLayer(r.Context(), in)
}

// sendLayer gives a layer to the running server.
func sendLayer(ctx context.Context, dataDir string, order layerOrder, pack *os.File) (*lambdaservice.ImportedLayer, error) {
	if _, err := pack.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	header, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	text, err := postControl(ctx, dataDir, "/layers", http.Header{layerHeader: {ascii(header)}}, pack)
	if err != nil {
		return nil, err
	}
	var got lambdaservice.ImportedLayer
	return &got, json.Unmarshal([]byte(text), &got)
}

// ascii escapes what a header cannot hold, in JSON.
func ascii(b []byte) string {
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x80:
			out.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return out.String()
}

// postControl posts to the server of a data directory and returns its answer. It
// waits for as long as the work takes.
func postControl(ctx context.Context, dataDir, path string, header http.Header, body io.Reader) (string, error) {
	dir, err := os.Open(dataDir)
	if err != nil {
		return "", fmt.Errorf("no server has used the data directory %s: %w", dataDir, err)
	}
	defer dir.Close()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", controlAddress(dir))
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control"+path, io.NopCloser(body))
	if err != nil {
		return "", err
	}
	for k, v := range header {
		req.Header[k] = slices.Clone(v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("no server is running on %s (start one with: lambdad serve --data-dir %s): %w", dataDir, dataDir, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(strings.TrimSpace(string(text)))
	}
	return string(text), nil
}

// tellControl posts an order to the server of a data directory.
func tellControl(ctx context.Context, dataDir, path string, order any) (string, error) {
	body, err := json.Marshal(order)
	if err != nil {
		return "", err
	}
	return postControl(ctx, dataDir, path, nil, bytes.NewReader(body))
}
