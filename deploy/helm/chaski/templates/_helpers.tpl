{{- define "chaski.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "chaski.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "chaski.labels" -}}
{{ include "chaski.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "chaski.config" -}}
{{- if not .Values.config.brokers }}{{ fail "config.brokers: name the Kafka brokers" }}{{ end -}}
[ingest]
listen = "0.0.0.0:8080"
# As long as endpoints take to be forgotten.
stop_delay = "5s"

[admin]
listen = "0.0.0.0:8081"
token = "env:CHASKI_ADMIN_TOKEN"

[storage]
kind = "kafka"
brokers = {{ .Values.config.brokers | toJson }}
partitions = {{ .Values.config.partitions }}
replication = {{ .Values.config.replication }}
path = "/var/lib/chaski/spool"

{{ with .Values.config.redis -}}
[storage.dedup]
redis = {{ . | quote }}

{{ end -}}
[log]
format = "json"

{{ .Values.config.extra }}
{{- end }}

{{/* What every pod has. Takes a dict of root, command, and whether it is probed. */}}
{{- define "chaski.container" -}}
image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: {{ .command | toJson }}
envFrom:
  {{- range .root.Values.secrets }}
  - secretRef: {name: {{ . }}}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "chaski.probes" -}}
# Until the storage is open.
startupProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 2, failureThreshold: 60}
# Fails only where a restart helps: after a failed sync.
livenessProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 3}
readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 2, timeoutSeconds: 2, failureThreshold: 2}
{{- end }}

{{- define "chaski.pod" -}}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}
