package ecr

import (
	"net/http"

	"github.com/lambdad/lambdad/aws"
)

// api is ECR as far as it is known here, by hand: there is no model of it.
var api = &aws.API{
	Name: "ecr", Title: "Amazon Elastic Container Registry", Version: "2015-09-21",
	Protocols: []aws.Protocol{aws.JSON11}, Target: "AmazonEC2ContainerRegistry_V20150921",
	Operations: []string{
		"BatchCheckLayerAvailability", "BatchDeleteImage", "BatchGetImage", "BatchGetRepositoryScanningConfiguration", "CompleteLayerUpload",
		"CreatePullThroughCacheRule", "CreateRepository", "CreateRepositoryCreationTemplate", "DeleteLifecyclePolicy",
		"DeletePullThroughCacheRule", "DeleteRegistryPolicy", "DeleteRepository", "DeleteRepositoryCreationTemplate",
		"DeleteRepositoryPolicy", "DescribeImageReplicationStatus", "DescribeImageScanFindings", "DescribeImages",
		"DescribePullThroughCacheRules", "DescribeRegistry", "DescribeRepositories", "DescribeRepositoryCreationTemplates",
		"GetAccountSetting", "GetAuthorizationToken", "GetDownloadUrlForLayer", "GetLifecyclePolicy", "GetLifecyclePolicyPreview",
		"GetRegistryPolicy", "GetRegistryScanningConfiguration", "GetRepositoryPolicy", "InitiateLayerUpload", "ListImages",
		"ListTagsForResource", "PutAccountSetting", "PutImage", "PutImageScanningConfiguration", "PutImageTagMutability",
		"PutLifecyclePolicy", "PutRegistryPolicy", "PutRegistryScanningConfiguration", "PutReplicationConfiguration",
		"SetRepositoryPolicy", "StartImageScan", "StartLifecyclePolicyPreview", "TagResource", "UntagResource",
		"UpdatePullThroughCacheRule", "UpdateRepositoryCreationTemplate", "UploadLayerPart", "ValidatePullThroughCacheRule",
	},
	Errors: map[string]aws.ErrorShape{
		"AccessDeniedException":             {Status: http.StatusBadRequest, Key: "message"},
		"ImageAlreadyExistsException":       {Status: http.StatusBadRequest, Key: "message"},
		"ImageDigestDoesNotMatchException":  {Status: http.StatusBadRequest, Key: "message"},
		"ImageNotFoundException":            {Status: http.StatusBadRequest, Key: "message"},
		"ImageTagAlreadyExistsException":    {Status: http.StatusBadRequest, Key: "message"},
		"InvalidParameterException":         {Status: http.StatusBadRequest, Key: "message"},
		"LayersNotFoundException":           {Status: http.StatusBadRequest, Key: "message"},
		"LifecyclePolicyNotFoundException":  {Status: http.StatusBadRequest, Key: "message"},
		"LimitExceededException":            {Status: http.StatusBadRequest, Key: "message"},
		"ReferencedImagesNotFoundException": {Status: http.StatusBadRequest, Key: "message"},
		"RepositoryAlreadyExistsException":  {Status: http.StatusBadRequest, Key: "message"},
		"RepositoryNotEmptyException":       {Status: http.StatusBadRequest, Key: "message"},
		"RepositoryNotFoundException":       {Status: http.StatusBadRequest, Key: "message"},
		"RepositoryPolicyNotFoundException": {Status: http.StatusBadRequest, Key: "message"},
		"TooManyTagsException":              {Status: http.StatusBadRequest, Key: "message"},
		"UnsupportedImageTypeException":     {Status: http.StatusBadRequest, Key: "message"},
	},
	ValidationCode: "InvalidParameterException",
}

// repositoryPattern is that of the documentation.
var repositoryPattern = aws.NewPattern(
	`(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*`,
	`^(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*$`)

var nameConstraint = aws.Constraint{Min: new(float64(2)), Max: new(float64(256)), Pattern: repositoryPattern}

func repositoryName(s string) bool {
	return len(s) >= 2 && len(s) <= 256 && repositoryPattern.Matches(s)
}

var registryConstraint = aws.Constraint{Pattern: aws.NewPattern(`[0-9]{12}`, "")}

// The shapes. Members have the names of the API in their tags.
type (
	// A RepositoryRequest names a repository.
	RepositoryRequest struct {
		RegistryID     *string `json:"registryId,omitzero"`
		RepositoryName *string `json:"repositoryName,omitzero"`
	}
	// An ImageIdentifier names an image by digest, tag or both.
	ImageIdentifier struct {
		ImageDigest *string `json:"imageDigest,omitzero"`
		ImageTag    *string `json:"imageTag,omitzero"`
	}
	// A Tag is one of a resource.
	Tag struct {
		Key   *string `json:"Key,omitzero"`
		Value *string `json:"Value,omitzero"`
	}
	// A ScanningConfiguration says whether images are scanned; none are.
	ScanningConfiguration struct {
		ScanOnPush *bool `json:"scanOnPush,omitzero"`
	}
	// An EncryptionConfiguration says how images are stored.
	EncryptionConfiguration struct {
		EncryptionType *string `json:"encryptionType,omitzero"`
		KMSKey         *string `json:"kmsKey,omitzero"`
	}
	// A Repository is one as answers have it.
	Repository struct {
		RepositoryArn              *string                  `json:"repositoryArn,omitzero"`
		RegistryID                 *string                  `json:"registryId,omitzero"`
		RepositoryName             *string                  `json:"repositoryName,omitzero"`
		RepositoryURI              *string                  `json:"repositoryUri,omitzero"`
		CreatedAt                  *aws.Timestamp           `json:"createdAt,omitzero"`
		ImageTagMutability         *string                  `json:"imageTagMutability,omitzero"`
		ImageScanningConfiguration *ScanningConfiguration   `json:"imageScanningConfiguration,omitzero"`
		EncryptionConfiguration    *EncryptionConfiguration `json:"encryptionConfiguration,omitzero"`
	}
	// An ImageDetail is an image as DescribeImages has it.
	ImageDetail struct {
		RegistryID             *string        `json:"registryId,omitzero"`
		RepositoryName         *string        `json:"repositoryName,omitzero"`
		ImageDigest            *string        `json:"imageDigest,omitzero"`
		ImageTags              []string       `json:"imageTags,omitzero"`
		ImageSizeInBytes       *int64         `json:"imageSizeInBytes,omitzero"`
		ImagePushedAt          *aws.Timestamp `json:"imagePushedAt,omitzero"`
		ImageManifestMediaType *string        `json:"imageManifestMediaType,omitzero"`
		ArtifactMediaType      *string        `json:"artifactMediaType,omitzero"`
	}
	// An Image is an image with its manifest.
	Image struct {
		RegistryID             *string          `json:"registryId,omitzero"`
		RepositoryName         *string          `json:"repositoryName,omitzero"`
		ImageID                *ImageIdentifier `json:"imageId,omitzero"`
		ImageManifest          *string          `json:"imageManifest,omitzero"`
		ImageManifestMediaType *string          `json:"imageManifestMediaType,omitzero"`
	}
	// An ImageFailure says what went wrong with an image of several.
	ImageFailure struct {
		ImageID       *ImageIdentifier `json:"imageId,omitzero"`
		FailureCode   *string          `json:"failureCode,omitzero"`
		FailureReason *string          `json:"failureReason,omitzero"`
	}
	// A Layer is one as BatchCheckLayerAvailability has it.
	Layer struct {
		LayerDigest       *string `json:"layerDigest,omitzero"`
		LayerAvailability *string `json:"layerAvailability,omitzero"`
		LayerSize         *int64  `json:"layerSize,omitzero"`
	}
	// A LayerFailure says what is wrong with a layer's digest.
	LayerFailure struct {
		LayerDigest   *string `json:"layerDigest,omitzero"`
		FailureCode   *string `json:"failureCode,omitzero"`
		FailureReason *string `json:"failureReason,omitzero"`
	}
	// An ImageFilter chooses images by whether they have tags.
	ImageFilter struct {
		TagStatus *string `json:"tagStatus,omitzero"`
	}
	// AuthorizationData is a password and where it is good.
	AuthorizationData struct {
		AuthorizationToken *string        `json:"authorizationToken,omitzero"`
		ExpiresAt          *aws.Timestamp `json:"expiresAt,omitzero"`
		ProxyEndpoint      *string        `json:"proxyEndpoint,omitzero"`
	}

	// CreateRepositoryRequest is the input of CreateRepository.
	CreateRepositoryRequest struct {
		RepositoryRequest
		Tags                       []Tag                    `json:"tags,omitzero"`
		ImageTagMutability         *string                  `json:"imageTagMutability,omitzero"`
		ImageScanningConfiguration *ScanningConfiguration   `json:"imageScanningConfiguration,omitzero"`
		EncryptionConfiguration    *EncryptionConfiguration `json:"encryptionConfiguration,omitzero"`
	}
	// CreateRepositoryResponse is its output.
	CreateRepositoryResponse struct {
		Repository *Repository `json:"repository,omitzero"`
	}
	// DescribeRepositoriesRequest is the input of DescribeRepositories.
	DescribeRepositoriesRequest struct {
		RegistryID      *string  `json:"registryId,omitzero"`
		RepositoryNames []string `json:"repositoryNames,omitzero"`
		NextToken       *string  `json:"nextToken,omitzero"`
		MaxResults      *int64   `json:"maxResults,omitzero"`
	}
	// DescribeRepositoriesResponse is its output.
	DescribeRepositoriesResponse struct {
		Repositories []*Repository `json:"repositories"`
		NextToken    *string       `json:"nextToken,omitzero"`
	}
	// DeleteRepositoryRequest is the input of DeleteRepository.
	DeleteRepositoryRequest struct {
		RepositoryRequest
		Force *bool `json:"force,omitzero"`
	}
	// DeleteRepositoryResponse is its output.
	DeleteRepositoryResponse struct {
		Repository *Repository `json:"repository,omitzero"`
	}
	// GetAuthorizationTokenRequest is the input of GetAuthorizationToken.
	GetAuthorizationTokenRequest struct {
		RegistryIDs []string `json:"registryIds,omitzero"`
	}
	// GetAuthorizationTokenResponse is its output.
	GetAuthorizationTokenResponse struct {
		AuthorizationData []AuthorizationData `json:"authorizationData"`
	}
	// DescribeImagesRequest is the input of DescribeImages.
	DescribeImagesRequest struct {
		RepositoryRequest
		ImageIDs   []ImageIdentifier `json:"imageIds,omitzero"`
		Filter     *ImageFilter      `json:"filter,omitzero"`
		NextToken  *string           `json:"nextToken,omitzero"`
		MaxResults *int64            `json:"maxResults,omitzero"`
	}
	// DescribeImagesResponse is its output.
	DescribeImagesResponse struct {
		ImageDetails []*ImageDetail `json:"imageDetails"`
		NextToken    *string        `json:"nextToken,omitzero"`
	}
	// ListImagesRequest is the input of ListImages.
	ListImagesRequest struct {
		RepositoryRequest
		Filter     *ImageFilter `json:"filter,omitzero"`
		NextToken  *string      `json:"nextToken,omitzero"`
		MaxResults *int64       `json:"maxResults,omitzero"`
	}
	// ListImagesResponse is its output.
	ListImagesResponse struct {
		ImageIDs  []ImageIdentifier `json:"imageIds"`
		NextToken *string           `json:"nextToken,omitzero"`
	}
	// BatchGetImageRequest is the input of BatchGetImage.
	BatchGetImageRequest struct {
		RepositoryRequest
		ImageIDs           []ImageIdentifier `json:"imageIds,omitzero"`
		AcceptedMediaTypes []string          `json:"acceptedMediaTypes,omitzero"`
	}
	// BatchGetImageResponse is its output.
	BatchGetImageResponse struct {
		Images   []*Image       `json:"images"`
		Failures []ImageFailure `json:"failures"`
	}
	// BatchDeleteImageRequest is the input of BatchDeleteImage.
	BatchDeleteImageRequest struct {
		RepositoryRequest
		ImageIDs []ImageIdentifier `json:"imageIds,omitzero"`
	}
	// BatchDeleteImageResponse is its output.
	BatchDeleteImageResponse struct {
		ImageIDs []ImageIdentifier `json:"imageIds"`
		Failures []ImageFailure    `json:"failures"`
	}
	// BatchCheckLayerAvailabilityRequest is the input of BatchCheckLayerAvailability.
	BatchCheckLayerAvailabilityRequest struct {
		RepositoryRequest
		LayerDigests []string `json:"layerDigests,omitzero"`
	}
	// BatchCheckLayerAvailabilityResponse is its output.
	BatchCheckLayerAvailabilityResponse struct {
		Layers   []Layer        `json:"layers"`
		Failures []LayerFailure `json:"failures"`
	}
	// PutImageRequest is the input of PutImage.
	PutImageRequest struct {
		RepositoryRequest
		ImageManifest          *string `json:"imageManifest,omitzero"`
		ImageManifestMediaType *string `json:"imageManifestMediaType,omitzero"`
		ImageTag               *string `json:"imageTag,omitzero"`
		ImageDigest            *string `json:"imageDigest,omitzero"`
	}
	// PutImageResponse is its output.
	PutImageResponse struct {
		Image *Image `json:"image,omitzero"`
	}
	// PutImageTagMutabilityRequest is the input of PutImageTagMutability.
	PutImageTagMutabilityRequest struct {
		RepositoryRequest
		ImageTagMutability *string `json:"imageTagMutability,omitzero"`
	}
	// PutImageTagMutabilityResponse is its output.
	PutImageTagMutabilityResponse struct {
		RegistryID         *string `json:"registryId,omitzero"`
		RepositoryName     *string `json:"repositoryName,omitzero"`
		ImageTagMutability *string `json:"imageTagMutability,omitzero"`
	}
	// PutImageScanningConfigurationRequest is the input of PutImageScanningConfiguration.
	PutImageScanningConfigurationRequest struct {
		RepositoryRequest
		ImageScanningConfiguration *ScanningConfiguration `json:"imageScanningConfiguration,omitzero"`
	}
	// PutImageScanningConfigurationResponse is its output.
	PutImageScanningConfigurationResponse struct {
		RegistryID                 *string                `json:"registryId,omitzero"`
		RepositoryName             *string                `json:"repositoryName,omitzero"`
		ImageScanningConfiguration *ScanningConfiguration `json:"imageScanningConfiguration,omitzero"`
	}
	// SetRepositoryPolicyRequest is the input of SetRepositoryPolicy.
	SetRepositoryPolicyRequest struct {
		RepositoryRequest
		PolicyText *string `json:"policyText,omitzero"`
		Force      *bool   `json:"force,omitzero"`
	}
	// RepositoryPolicyResponse is the output of the operations on policies.
	RepositoryPolicyResponse struct {
		RegistryID     *string `json:"registryId,omitzero"`
		RepositoryName *string `json:"repositoryName,omitzero"`
		PolicyText     *string `json:"policyText,omitzero"`
	}
	// ListTagsForResourceRequest is the input of ListTagsForResource.
	ListTagsForResourceRequest struct {
		ResourceARN *string `json:"resourceArn,omitzero"`
	}
	// ListTagsForResourceResponse is its output.
	ListTagsForResourceResponse struct {
		Tags []Tag `json:"tags"`
	}
	// TagResourceRequest is the input of TagResource.
	TagResourceRequest struct {
		ResourceARN *string `json:"resourceArn,omitzero"`
		Tags        []Tag   `json:"tags,omitzero"`
	}
	// UntagResourceRequest is the input of UntagResource.
	UntagResourceRequest struct {
		ResourceARN *string  `json:"resourceArn,omitzero"`
		TagKeys     []string `json:"tagKeys,omitzero"`
	}
)

// Validate implements aws.Input.
func (in *RepositoryRequest) Validate(v *aws.Validator) {
	v.Required("repositoryName", in.RepositoryName != nil)
	v.String("repositoryName", in.RepositoryName, &nameConstraint)
	v.String("registryId", in.RegistryID, &registryConstraint)
}

// Validate implements aws.Input.
func (in *DescribeRepositoriesRequest) Validate(v *aws.Validator) {
	v.Strings("repositoryNames", in.RepositoryNames, &aws.Constraint{Element: &nameConstraint})
	v.String("registryId", in.RegistryID, &registryConstraint)
}

// Validate implements aws.Input.
func (in *GetAuthorizationTokenRequest) Validate(v *aws.Validator) {
	v.Strings("registryIds", in.RegistryIDs, &aws.Constraint{Max: new(float64(10)), Element: &registryConstraint})
}

// Validate implements aws.Input.
func (in *BatchGetImageRequest) Validate(v *aws.Validator) {
	in.RepositoryRequest.Validate(v)
	v.Required("imageIds", len(in.ImageIDs) > 0)
}

// Validate implements aws.Input.
func (in *BatchDeleteImageRequest) Validate(v *aws.Validator) {
	in.RepositoryRequest.Validate(v)
	v.Required("imageIds", len(in.ImageIDs) > 0)
}

// Validate implements aws.Input.
func (in *BatchCheckLayerAvailabilityRequest) Validate(v *aws.Validator) {
	in.RepositoryRequest.Validate(v)
	v.Required("layerDigests", len(in.LayerDigests) > 0)
}

// Validate implements aws.Input.
func (in *PutImageRequest) Validate(v *aws.Validator) {
	in.RepositoryRequest.Validate(v)
	v.Required("imageManifest", in.ImageManifest != nil)
}

// Validate implements aws.Input.
func (in *SetRepositoryPolicyRequest) Validate(v *aws.Validator) {
	in.RepositoryRequest.Validate(v)
	v.Required("policyText", in.PolicyText != nil)
	v.String("policyText", in.PolicyText, &aws.Constraint{Max: new(float64(10240))})
}

// Validate implements aws.Input.
func (in *ListTagsForResourceRequest) Validate(v *aws.Validator) {
	v.Required("resourceArn", in.ResourceARN != nil)
}

// Validate implements aws.Input.
func (in *TagResourceRequest) Validate(v *aws.Validator) {
	v.Required("resourceArn", in.ResourceARN != nil)
}

// Validate implements aws.Input.
func (in *UntagResourceRequest) Validate(v *aws.Validator) {
	v.Required("resourceArn", in.ResourceARN != nil)
}
