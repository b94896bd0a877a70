"""The text files of start-up kits: settings with comments, instructions, systemd units."""

__all__ = [
    "FEDERATION",
    "NODES",
    "NODE_UNIT",
    "SITE",
    "SITE_GUIDE",
    "SITE_UNIT",
    "STUDY_UNIT",
    "SUPERLINK_UNIT",
    "coordinator_guide",
]

SITE = """# This hospital's settings. The service reads them when it starts; paths are relative to this folder.

[site]
name = "{name}"                 # as the coordinator's studies name this hospital
coordinator = "{coordinator}"   # public key; no other sender is answered
listen = "{listen}"             # or "tcp:127.0.0.1:PORT", with 64 random characters in a file named token
{group}

[data]
source = "{source}"             # a manifest .csv, .tsv, .parquet or .xlsx, a folder of images, or an .npz file
#columns = {{ path = "Image Index", label = "Finding Labels", patient = "Patient ID" }}   # for other column names
#layout = "class"               # what the folders above an image mean, such as site/class; needed for a folder
#site = "{name}"                # this hospital's name in data that names several
test_fraction = 0.2             # probability that a patient is held out for tests, if the data has no split
allow_patient_overlap = false
#one_image_a_patient = true     # if the data names no patients: no two images show the same patient
#slices = 16                    # the images are volumes; a study sets its own number

[budget]                        # limit on what all studies together may ever reveal about one patient
epsilon = {epsilon}             # 1 is strict, 8 is loose
delta = {delta}                 # at most 1 / max_units
unit = "patient"                # "patient", "image" or "site"
max_units = {max_units}               # upper bound on the number of units (patients, images), ever; public

[policy]                        # studies outside these limits are refused, even if approved
trust = ["site", "secure-aggregation"]   # "server" trusts the coordinator, "none" gives no privacy
min_sites = 2                   # smallest number of hospitals in a round
#max_honest = 2                 # largest number of honest hospitals that a guarantee may assume; default two thirds
max_dimension = 5000000         # longest vector that leaves this hospital per round
methods = ["gradient"]          # also "averaging", "one-shot"
own_models = true               # make and charge this hospital's own model if a study includes one
#max_message_age = 600          # seconds after which a delayed message is refused; also allows for clock differences
"""

_NODE = """# The node carries sealed messages between the coordinator and the site service. It reads no images.

{address}
site = "{{listen}}"               # where the site service listens; paths are relative to this folder
#token = "token"                # file with the service's token, if it listens at tcp:127.0.0.1:PORT
"""
_ADDRESS = "# the coordinator's address; the only one that this hospital connects to"

NODES = {
    "flower": _NODE.format(address=f'superlink = "{{superlink}}"       {_ADDRESS}'),
    "nvflare": _NODE.format(address=f'engine = "nvflare"\ncoordinator = "{{superlink}}"     {_ADDRESS}'),
}
"""``node.toml`` by engine."""

FEDERATION = """[federation]
name = "{name}"
port = {port}                   # hospitals connect here; open it in the firewall, and no other
listen = "{listen}"             # local address to listen at
engine = "{engine}"             # what carries messages: "flower" or "nvflare"; each has kits of its own
sites = [{sites}]
#wait_for_approval = 86400      # seconds that `coordinate` waits for hospitals to approve a study
#wait_for_absent = 8            # seconds that a round waits for a hospital once it is gone; later rounds wait 1 s
#wait_for_answer = 3600         # seconds that a connected hospital may take for one round
#ask_again = 15                 # seconds after which an unanswered request is sent again
"""

SITE_UNIT = """[Unit]
Description=fedveil site service of {name}: images, ledger and identity key; opens no connections
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

_COORDINATORS_LIMITS = """UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=/etc/fedveil/coordinator
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
CapabilityBoundingSet=
LockPersonality=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""

STUDY_UNIT = (
    """[Unit]
Description=fedveil study %i of the federation {name}
After=network-online.target{after}
Wants=network-online.target

[Service]
User=fedveil-coordinator
Group=fedveil-coordinator
StateDirectory=fedveil
ExecStart=/bin/sh -c 'cd /var/lib/fedveil && exec /opt/fedveil/bin/fedveil coordinate /etc/fedveil/studies/%i.toml \\
    --federation /etc/fedveil/coordinator --out runs/%i $$([ -e runs/%i ] && echo --resume)'
Restart=on-failure
RestartSec=60
"""
    + _COORDINATORS_LIMITS
)

SUPERLINK_UNIT = (
    """[Unit]
Description=fedveil SuperLink of the federation {name}: carries sealed messages for all studies
After=network-online.target
Wants=network-online.target

[Service]
User=fedveil-coordinator
Group=fedveil-coordinator
ExecStart=/opt/fedveil/bin/fedveil federation serve /etc/fedveil/coordinator
Restart=always
RestartSec=5
"""
    + _COORDINATORS_LIMITS
)

SITE_GUIDE = """# Start-up kit of {name} in the federation "{federation}"

Two programs run here. The **site service** (folder `site/`) holds the images, the budget and the signing
key, and never uses the network. The **node** (folder `node/`) connects to {superlink} and carries sealed messages
between the two; this hospital needs no open port.

## Install (once, as root)

    python3 -m venv /opt/fedveil
    /opt/fedveil/bin/pip install "fedveil[{engine},desk]=={version}"
    groupadd fedveil-line
    useradd --system --groups fedveil-line fedveil-site
    useradd --system --groups fedveil-line fedveil-node
    mkdir -p /etc/fedveil
    cp -r site node /etc/fedveil/
    sed -i 's|^listen = .*|listen = "unix:/run/fedveil/site.sock"|' /etc/fedveil/site/site.toml
    sed -i 's|^#group = .*|group = "fedveil-line"|' /etc/fedveil/site/site.toml
    sed -i 's|^site = .*|site = "unix:/run/fedveil/site.sock"|' /etc/fedveil/node/node.toml
    chown -R fedveil-site: /etc/fedveil/site
    chown -R fedveil-node: /etc/fedveil/node
    chmod 700 /etc/fedveil/site /etc/fedveil/node
    cp systemd/*.service /etc/systemd/system/

The coordinator runs version {version}: install the same.

## Set up (as the user of the site service, never as root)

Edit `/etc/fedveil/site/site.toml`: where the images are, the budget, the policy. The user `fedveil-site` has to be able
to read the images. The budget cannot be edited there later.

    cd /etc/fedveil
    sudo -u fedveil-site /opt/fedveil/bin/fedveil site init site
    sudo -u fedveil-site /opt/fedveil/bin/fedveil site check site
    systemctl enable --now fedveil-site fedveil-node

`site init` makes the signing key and the ledger. Read the fingerprint that it prints to the coordinator by telephone,
and have them read theirs: {fingerprint}

## Decide about a study

    sudo -u fedveil-site /opt/fedveil/bin/fedveil site studies site
    sudo -u fedveil-site /opt/fedveil/bin/fedveil site approve STUDY site
    sudo -u fedveil-site /opt/fedveil/bin/fedveil site decline STUDY site
    sudo -u fedveil-site /opt/fedveil/bin/fedveil site withdraw STUDY site

`approve` also decodes every image and asks you to compare the others' fingerprints. Each decision is kept with your
name, your role and the reason. `fedveil site desk site` does the same in a browser on this machine.

A finished study leaves its model in `site/models/STUDY`, for `fedveil predict`, and in `evaluation.json` there its
accuracy on the patients that are held out here. That file is as confidential as the images.

For a trial without systemd, one user runs both programs, in two terminals, from this folder:

    fedveil site serve site
    fedveil site connect node

## Back up

`site/ledger.jsonl` and `site/decisions.jsonl`, each with its `.head` file, after every study; `site/identity.key` once,
separately; after `fedveil site renew` again, with `patients.key` and `handovers.jsonl`. Never replace
a newer ledger by an older one: it would lack charges, and the coordinator's receipts reveal it.
"""

_COORDINATOR_GUIDE = """# The coordinator of the federation "{federation}"

1. Give each hospital its folder ({kits}) over a channel that only they can read, then delete it here.
2. Open TCP port {port} of {hosts} in the firewall. Only the hospitals need to connect.
3. Write a study whose `data.source` is your own test set, or "none" with `data.classes` and `data.channels`. See what
   it would cost, then run it:

       fedveil plan study.toml --federation .
       fedveil coordinate study.toml --federation .

   The second command {start}, offers the study, waits until the hospitals have approved it, trains, writes
   a run directory and sends every hospital the model. After an interruption: the same command with `--resume`. A
   hospital that was absent at the end receives the model with `fedveil federation send RUN --federation .`

As a service (once, as root), with the study in `/etc/fedveil/studies/NAME.toml` and the run in
`/var/lib/fedveil/runs/NAME`. After an interruption it resumes:

    python3 -m venv /opt/fedveil
    /opt/fedveil/bin/pip install "fedveil[{engine}]=={version}"
    useradd --system fedveil-coordinator
    mkdir -p /etc/fedveil/studies
    cp -r . /etc/fedveil/coordinator
    chown -R fedveil-coordinator: /etc/fedveil/coordinator
    chmod 700 /etc/fedveil/coordinator
{units}
    systemctl start fedveil-study@NAME

{standing} `fedveil federation status .` says what goes on and who has to do what.

Your fingerprint, to read to the hospitals by telephone: {fingerprint}
{secrets} stay on this machine. `receipts/` holds each hospital's signed receipts:
proof for the hospitals and for you. `fedveil federation receipts .` checks them.
"""


_OF_ENGINE = {
    "flower": {
        "start": "starts the SuperLink",
        "units": """    cp fedveil-superlink.service fedveil-study@.service /etc/systemd/system/
    systemctl enable --now fedveil-superlink""",
        "standing": """`fedveil-superlink` stays while studies come and go. Without it, the first study starts a
SuperLink, and the last one to end stops it.""",
        "secrets": "`ca.key`, `identity.key` and `superlink.secret`",
    },
    "nvflare": {
        "start": "opens the port",
        "units": "    cp fedveil-study@.service /etc/systemd/system/",
        "standing": "One study runs at a time, and the port is open only while it does.",
        "secrets": "`ca.key`, `identity.key` and `superlink.key`",
    },
}


def coordinator_guide(engine: str, **words: object) -> str:
    """The coordinator's README.md."""
    return _COORDINATOR_GUIDE.format(**_OF_ENGINE[engine], engine=engine, **words)
