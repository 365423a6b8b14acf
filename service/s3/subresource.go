package s3

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"

	"github.com/lambdad/lambdad"
)

// A subresource is a document beside a bucket or an object.
type subresource struct {
	bucket, object string // ends of the operations' names; "" where there is none
	// What GET answers where nothing was put: a document or an error.
	document      string
	missing, text string
	// accept checks what is put; nil refuses it: it would have no effect.
	accept func(body []byte) error
	// status of a successful PUT.
	status int
}

const ns = ` xmlns="http://s3.amazonaws.com/doc/2006-03-01/"`

// subresources are those that tools ask for (neighbours.md section 6). One whose
// effect does not exist cannot be put.
var subresources = map[string]subresource{
	"accelerate":   {bucket: "BucketAccelerateConfiguration", document: `<AccelerateConfiguration` + ns + `/>`},
	"acl":          {bucket: "BucketAcl", object: "ObjectAcl", accept: acceptPrivate, status: 200},
	"cors":         {bucket: "BucketCors", missing: "NoSuchCORSConfiguration", text: "The CORS configuration does not exist"},
	"encryption":   {bucket: "BucketEncryption", document: encryptionDocument, accept: acceptEncryption, status: 200},
	"lifecycle":    {bucket: "BucketLifecycleConfiguration", missing: "NoSuchLifecycleConfiguration", text: "The lifecycle configuration does not exist"},
	"logging":      {bucket: "BucketLogging", document: `<BucketLoggingStatus` + ns + `/>`},
	"notification": {bucket: "BucketNotificationConfiguration", document: `<NotificationConfiguration` + ns + `/>`, accept: acceptEmpty, status: 200},
	"object-lock":  {bucket: "ObjectLockConfiguration", missing: "ObjectLockConfigurationNotFoundError", text: "Object Lock configuration does not exist for this bucket"},
	"ownershipControls": {bucket: "BucketOwnershipControls", accept: acceptXML, status: 200,
		document: `<OwnershipControls` + ns + `><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>`},
	"policy":       {bucket: "BucketPolicy", missing: "NoSuchBucketPolicy", text: "The bucket policy does not exist", accept: acceptPolicy, status: 204},
	"policyStatus": {bucket: "BucketPolicyStatus", document: `<PolicyStatus` + ns + `><IsPublic>FALSE</IsPublic></PolicyStatus>`},
	"publicAccessBlock": {bucket: "PublicAccessBlock", accept: acceptXML, status: 200,
		document: `<PublicAccessBlockConfiguration` + ns + `><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>` +
			`<BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>`},
	"replication":    {bucket: "BucketReplication", missing: "ReplicationConfigurationNotFoundError", text: "The replication configuration was not found"},
	"requestPayment": {bucket: "BucketRequestPayment", document: `<RequestPaymentConfiguration` + ns + `><Payer>BucketOwner</Payer></RequestPaymentConfiguration>`},
	"tagging": {bucket: "BucketTagging", object: "ObjectTagging", missing: "NoSuchTagSet", text: "The TagSet does not exist",
		accept: acceptTagging, status: 204},
	"website":    {bucket: "BucketWebsite", missing: "NoSuchWebsiteConfiguration", text: "The specified bucket does not have a website configuration"},
	"analytics":  {bucket: "BucketAnalyticsConfiguration"},
	"attributes": {object: "ObjectAttributes"},
	"inventory":  {bucket: "BucketInventoryConfiguration"},
	"legal-hold": {object: "ObjectLegalHold"},
	"metrics":    {bucket: "BucketMetricsConfiguration"},
	"restore":    {object: "ObjectRestore"},
	"retention":  {object: "ObjectRetention"},
	"select":     {object: "ObjectContent"},
	"torrent":    {object: "ObjectTorrent"},
}

const encryptionDocument = `<ServerSideEncryptionConfiguration` + ns + `><Rule><ApplyServerSideEncryptionByDefault>` +
	`<SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault><BucketKeyEnabled>false</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>`

func (b *backend) serveSubresource(w http.ResponseWriter) error {
	sub := subresources[b.t.sub]
	switch {
	case b.t.sub == "acl":
		return b.serveACL(w)
	case b.t.sub == "tagging" && b.t.key != "":
		return b.serveObjectTagging(w)
	case b.t.key != "" || sub.document == "" && sub.missing == "" && sub.accept == nil:
		return notImplemented(b.r.Operation)
	}
	switch b.r.Method {
	case http.MethodGet:
		r, err := b.index.bucket(b.t.bucket)
		if err != nil {
			return err
		}
		document := r.Documents[b.t.sub]
		if document == "" {
			document = sub.document
		}
		if document == "" {
			return lambdad.Errorf(sub.missing, "%s", sub.text)
		}
		if b.t.sub == "policy" {
			return writeDocument(w, "application/json", document)
		}
		return writeDocument(w, "application/xml", document)
	case http.MethodPut:
		if sub.accept == nil {
			return notImplemented(b.r.Operation)
		}
		if err := sub.accept(b.r.Body); err != nil {
			return err
		}
		if err := b.index.change(b.ctx, b.t.bucket, func(r *bucketRecord) {
			if r.Documents == nil {
				r.Documents = map[string]string{}
			}
			r.Documents[b.t.sub] = string(b.r.Body)
		}); err != nil {
			return err
		}
		w.WriteHeader(sub.status)
		return nil
	default:
		if err := b.index.change(b.ctx, b.t.bucket, func(r *bucketRecord) { delete(r.Documents, b.t.sub) }); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func notImplemented(operation string) error {
	return lambdad.Errorf("NotImplemented", "lambdad does not offer the operation %s of S3: it would have no effect here.", operation)
}

// serveACL answers for access control lists, of which there is one: everything to
// the owner.
func (b *backend) serveACL(w http.ResponseWriter) error {
	switch b.r.Method {
	case http.MethodGet:
		if b.t.key != "" {
			if _, err := b.find(b.t.bucket, b.t.key, b.t.query.Get("versionId")); err != nil {
				return err
			}
		}
		type user struct {
			XSI  string `xml:"xmlns:xsi,attr,omitempty"`
			Type string `xml:"xsi:type,attr,omitempty"`
			ID   string
			Name string `xml:"DisplayName"`
		}
		type grant struct {
			Grantee    user
			Permission string
		}
		owner := user{ID: b.r.Identity.Account, Name: b.r.Identity.Account}
		grantee := owner
		grantee.XSI, grantee.Type = "http://www.w3.org/2001/XMLSchema-instance", "CanonicalUser"
		return writeXML(w, struct {
			XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ AccessControlPolicy"`
			Owner   user
			List    []grant `xml:"AccessControlList>Grant"`
		}{Owner: owner, List: []grant{{grantee, "FULL_CONTROL"}}})
	case http.MethodPut:
		if canned := b.r.Header.Get("X-Amz-Acl"); canned != "" && canned != "private" && canned != "bucket-owner-full-control" || len(b.r.Body) > 0 {
			return acceptPrivate(b.r.Body)
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return notImplemented(b.r.Operation)
}

func acceptPrivate([]byte) error {
	return lambdad.Errorf("AccessControlListNotSupported", "The bucket does not allow ACLs")
}

func acceptXML(body []byte) error {
	if xml.Unmarshal(body, new(struct{ XMLName xml.Name })) != nil {
		return errMalformedXML()
	}
	return nil
}

// acceptEmpty takes a configuration without content.
func acceptEmpty(body []byte) error {
	var document struct {
		Inner []struct{ XMLName xml.Name } `xml:",any"`
	}
	if xml.Unmarshal(body, &document) != nil {
		return errMalformedXML()
	}
	if len(document.Inner) > 0 {
		return notImplemented("PutBucketNotificationConfiguration")
	}
	return nil
}

func acceptEncryption(body []byte) error {
	var document struct {
		Rules []struct {
			Algorithm string `xml:"ApplyServerSideEncryptionByDefault>SSEAlgorithm"`
		} `xml:"Rule"`
	}
	if xml.Unmarshal(body, &document) != nil || len(document.Rules) != 1 {
		return errMalformedXML()
	}
	if a := document.Rules[0].Algorithm; a != "" && a != "AES256" {
		return lambdad.Errorf("NotImplemented", "lambdad has no KMS: the encryption %s cannot be configured, AES256 can.", a)
	}
	return nil
}

// A tagging is the document of tags.
type tagging struct {
	XMLName xml.Name `xml:"Tagging"`
	Tags    []struct {
		Key, Value string
	} `xml:"TagSet>Tag"`
}

func acceptTagging(body []byte) error {
	var t tagging
	if xml.Unmarshal(body, &t) != nil {
		return errMalformedXML()
	}
	seen := map[string]bool{}
	for _, tag := range t.Tags {
		if tag.Key == "" || len(tag.Key) > 128 || len(tag.Value) > 256 {
			return lambdad.Errorf("InvalidTag", "The TagKey you have provided is invalid")
		}
		if seen[tag.Key] {
			return lambdad.Errorf("InvalidTag", "Cannot provide multiple Tags with the same key")
		}
		seen[tag.Key] = true
	}
	if len(t.Tags) > 50 {
		return lambdad.Errorf("BadRequest", "Bucket tag count cannot be greater than 50")
	}
	return nil
}

// taggingHeader turns the tags of x-amz-tagging, in the form of a query, into the
// document that is kept.
func taggingHeader(h string) (string, error) {
	if h == "" {
		return "", nil
	}
	values, err := url.ParseQuery(h)
	if err != nil {
		return "", lambdad.Errorf("InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
	}
	var t tagging
	for key, v := range values {
		t.Tags = append(t.Tags, struct{ Key, Value string }{key, v[0]})
	}
	body, err := xml.Marshal(t)
	if err != nil {
		return "", err
	}
	return string(body), checkObjectTags(body)
}

func checkObjectTags(body []byte) error {
	if strings.Count(string(body), "<Key>") > 10 {
		return lambdad.Errorf("BadRequest", "Object tags cannot be greater than 10")
	}
	return acceptTagging(body)
}

func (b *backend) serveObjectTagging(w http.ResponseWriter) error {
	id := b.t.query.Get("versionId")
	if b.r.Method == http.MethodGet {
		v, err := b.find(b.t.bucket, b.t.key, id)
		if err != nil {
			return err
		}
		if v.Tags == "" {
			return writeDocument(w, "application/xml", `<Tagging`+ns+`><TagSet/></Tagging>`)
		}
		return writeDocument(w, "application/xml", v.Tags)
	}
	tags, status := "", http.StatusNoContent
	if b.r.Method == http.MethodPut {
		if err := checkObjectTags(b.r.Body); err != nil {
			return err
		}
		tags, status = string(b.r.Body), http.StatusOK
	}
	if _, err := b.find(b.t.bucket, b.t.key, id); err != nil {
		return err
	}
	err := b.index.write(b.ctx, b.t.bucket, b.t.key, func(_ *bucketRecord, o *objectRecord) error {
		i := len(o.Versions) - 1
		if id != "" {
			i = o.find(id)
		}
		if i < 0 {
			return errNoSuchKey()
		}
		o.Versions[i].Tags = tags
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(status)
	return nil
}
