"""The text files of start-up kits: settings with comments, instructions, systemd units."""

__all__ = ["COORDINATOR_GUIDE", "FEDERATION", "NODE", "NODE_UNIT", "SITE", "SITE_GUIDE", "SITE_UNIT"]

SITE = """# What this hospital decides. The service reads it when it starts; paths are relative to its folder.

[site]
name = "{name}"                 # as the coordinator's studies name this hospital
coordinator = "{coordinator}"   # public key; nobody else is answered
listen = "{listen}"             # or "tcp:127.0.0.1:PORT", with 64 random characters in a file named token
{group}

[data]
source = "{source}"             # a manifest .csv or .tsv, a folder of images, or an .npz file
#columns = {{ path = "Image Index", label = "Finding Labels", patient = "Patient ID" }}   # of a table with other names
#site = "{name}"                # where the data names several hospitals: the one that this is
test_fraction = 0.2             # chance of a patient to be held out for tests, where the data has no split
allow_patient_overlap = false
#one_image_a_patient = true     # where the data names no patients: no two images show the same one

[budget]                        # the most that all studies together may ever reveal about one patient
epsilon = {epsilon}             # 1 is strict, 8 is loose
delta = {delta}                 # at most one over max_units
unit = "patient"                # "patient", "image" or "site"
max_units = {max_units}               # the most patients (or images, if they are the unit) there will ever be; public

[policy]                        # studies outside these limits are refused, whoever approved them
trust = ["site", "secure-aggregation"]   # "server" trusts the coordinator, "none" gives no privacy
min_sites = 2                   # fewest hospitals of a round
#max_honest = 2                 # most hospitals that a study's guarantee may count on; default two thirds
max_dimension = 5000000         # longest vector that leaves this hospital in a round
methods = ["gradient"]          # also "averaging", "one-shot"
own_models = true               # pay for a model of this hospital's own where a study provides for one
#max_message_age = 600          # seconds after which a message that was held back is refused; room for clocks too
"""

NODE = """# The node carries sealed messages between the coordinator and the site service. It reads no images.

superlink = "{superlink}"       # the coordinator's address; the only one that this hospital dials
site = "{listen}"               # where the site service listens; paths are relative to this folder
#token = "token"                # file with the service's token, if it listens at tcp:127.0.0.1:PORT
"""

FEDERATION = """[federation]
name = "{name}"
port = {port}                   # hospitals connect here; open it in the firewall, and no other
listen = "{listen}"             # address of this machine to answer at
sites = [{sites}]
#wait_for_approval = 86400      # seconds that `coordinate` waits for hospitals to approve a study
#wait_for_absent = 120          # seconds that a round waits for a hospital that is not connected
#wait_for_answer = 3600         # seconds that a connected hospital may take over one round
#ask_again = 15                 # seconds after which an unanswered request is sent once more
"""

SITE_UNIT = """[Unit]
Description=fedveil site service of {name}: images, ledger and identity key; never dials out
After=local-fs.target

[Service]
User=fedveil-site
Group=fedveil-site
SupplementaryGroups=fedveil-line
RuntimeDirectory=fedveil
RuntimeDirectoryMode=0755
ExecStart=/opt/fedveil/bin/fedveil site serve /etc/fedveil/site
Restart=on-failure
RestartSec=2
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/etc/fedveil/site
PrivateTmp=yes
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any
CapabilityBoundingSet=
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""

NODE_UNIT = """[Unit]
Description=fedveil node of {name}: carries sealed messages to {superlink}; cannot read images, ledger or keys
After=network-online.target fedveil-site.service
Wants=network-online.target

[Service]
User=fedveil-node
Group=fedveil-node
SupplementaryGroups=fedveil-line
ExecStart=/opt/fedveil/bin/fedveil site connect /etc/fedveil/node
Restart=always
RestartSec=5
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=/etc/fedveil/node
InaccessiblePaths=/etc/fedveil/site
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
CapabilityBoundingSet=
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""

SITE_GUIDE = """# Start-up kit of {name} in the federation "{federation}"

Two programs run here. The **site service** (folder `site/`) holds the images, the budget and the signing
key, and never touches the network. The **node** (folder `node/`) dials {superlink} and carries sealed
messages between the two; this hospital needs no open port.

1. `pip install "fedveil[flower]"` (the coordinator runs version {version}; install the same)
2. Edit `site/site.toml`: where the images are, the budget, the policy. The budget is fixed from here on.
3. `fedveil site init site` makes the signing key and the ledger. Read the fingerprint that it prints to the
   coordinator by telephone, and have them read theirs: {fingerprint}
4. `fedveil site check site`
5. `fedveil site serve site`, and as another user `fedveil site connect node`
6. When a study is offered: `fedveil site studies site`, read what it would cost, then
   `fedveil site approve STUDY site`, which also decodes every image and has the others' fingerprints compared
7. A finished study leaves its model in `site/models/STUDY`, for `fedveil predict`, and in `evaluation.json` there
   how good it is on the patients that are held out here. That file is as private as the images.

As services, under separate users (once, as root):

    groupadd fedveil-line
    useradd --system --groups fedveil-line fedveil-site
    useradd --system --groups fedveil-line fedveil-node
    mkdir -p /etc/fedveil && cp -r site node /etc/fedveil/
    chown -R fedveil-site: /etc/fedveil/site && chmod 700 /etc/fedveil/site
    chown -R fedveil-node: /etc/fedveil/node && chmod 700 /etc/fedveil/node
    # in site.toml:  listen = "unix:/run/fedveil/site.sock"  and  group = "fedveil-line"
    # in node.toml:  site = "unix:/run/fedveil/site.sock"
    cp systemd/*.service /etc/systemd/system/
    systemctl enable --now fedveil-site fedveil-node

Back up `site/ledger.jsonl` with its `.head` file, and `site/identity.key` once, apart from them. Never put
back an older ledger over a newer one: it would forget what was spent, and the coordinator's receipts show it.
"""

COORDINATOR_GUIDE = """# The coordinator of the federation "{federation}"

1. Give each hospital its folder ({kits}) over a channel that only they can read, then delete it here.
2. Open TCP port {port} of {hosts} in the firewall. Hospitals only dial out; nobody else needs to connect.
3. Write a study whose `data.source` is a test set of your own, or "none" with `data.classes` and `data.channels`,
   then

       fedveil coordinate study.toml --federation .

   It starts the SuperLink, offers the study, waits until the hospitals have approved it, trains, writes a run
   directory and gives every hospital the model. After an interruption: the same command with `--resume`. A hospital
   that was away at the end gets the model by `fedveil federation send RUN --federation .`

Your fingerprint, to read to the hospitals by telephone: {fingerprint}
`ca.key`, `identity.key` and `superlink.secret` stay on this machine. `receipts/` is the hospitals' proof and
yours.
"""
